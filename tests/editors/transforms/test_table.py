"""The names by which users choose transforms."""

import pytest

from jaxedit.editors.transforms import TRANSFORMS, Transform, build_transforms, read_transform
from jaxedit.errors import ConfigError
from tests.cases import Case


@pytest.mark.parametrize(
    ("text", "name", "numbers", "compensated"),
    [
        ("rect", "rect", (0.4,), False),
        ("rect:0.2", "rect", (0.2,), False),
        ("sphere:0.5", "sphere", (0.5, 0.5), False),
        ("sphere:0.5,0.9", "sphere", (0.5, 0.9), False),
        ("spectrum-lock", "spectrum-lock", (), False),
        ("clip-norm:1e-2", "clip-norm", (0.01,), False),
        ("compensate:rect:0.2", "rect", (0.2,), True),
        ("compensate:norm-lock", "norm-lock", (), True),
    ],
)
def test_what_a_text_names(text: str, name: str, numbers: tuple[float, ...], compensated: bool) -> None:
    choice = read_transform(text)
    assert (choice.row.name, choice.numbers, choice.compensated) == (name, numbers, compensated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rekt:0.4", "unknown transform 'rekt'. Did you mean 'rect'"),
        ("compensate:spectrumlock", "Did you mean 'spectrum-lock'"),
        ("compensat:rect", "Did you mean 'compensate'"),
        ("compensate", "unknown transform ''"),
        ("compensate:compensate:rect", "compensate stands twice; once is enough"),
        (
            "compensate:prune:1.2",
            "prune leaves every update as it is, so there is nothing to compensate; write prune:1.2",
        ),
        ("rect:lots", "transform 'rect:lots': share is 'lots', not a number: write rect:share=0.4"),
        ("rect:1.5", "share is 1.5; it must be above 0 and at most 1"),
        ("rect:nan", "share is nan; it must be above 0 and at most 1"),
        ("rect:0", "share is 0; it must be above 0 and at most 1"),
        ("prune:1", "base is 1; it must be above 1"),
        ("clip-norm", "bound is missing: write clip-norm:bound"),
        ("clip-norm:inf", "bound is inf; it must be above 0"),
        ("rect:0.4,0.5", "2 numbers are given, rect takes 1: write rect:share=0.4"),
        ("norm-lock:1", "1 numbers are given, norm-lock takes 0: write norm-lock"),
    ],
)
def test_what_is_refused_and_how_it_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_transform(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["null-space", "mose", "compensate:null-space:0.1"])
def test_a_transform_that_needs_moments_is_refused_where_there_are_none(gpt2: Case, text: str) -> None:
    """Those of editors of all parameters, which have no layers."""
    with pytest.raises(
        ConfigError, match="needs second moments, which are those of the keys of chosen layers"
    ):
        build_transforms(["rect", text], gpt2.model, {})


def test_rows_are_complete_and_usable(gpt2: Case) -> None:
    for name, row in TRANSFORMS.items():
        assert name == row.name
        assert row.does
        assert row.remembers
        needed = ",".join("0.5" for p in row.parameters if p.default is None)
        (transform,) = build_transforms([f"{name}:{needed}" if needed else name], gpt2.model, gpt2.moments)
        assert isinstance(transform, Transform)
