"""The table of transforms: what a user may name, as in "rect:0.4", "sphere:0.5,0.5", "compensate:rect"."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from jaxedit.editors.transforms.compensate import compensate
from jaxedit.editors.transforms.limits import clip_norm, scale, spectral_cap
from jaxedit.editors.transforms.locks import norm_lock, spectrum_lock
from jaxedit.editors.transforms.masks import null_space, revive, sphere
from jaxedit.editors.transforms.mose import mose
from jaxedit.editors.transforms.prune import prune
from jaxedit.editors.transforms.rect import rect
from jaxedit.editors.transforms.transform import Transform
from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.model import Model

COMPENSATE = "compensate"


@dataclass(frozen=True)
class Parameter:
    """A number of a transform: above `low`, at most `high`."""

    name: str
    default: float | None = None  # None: must be given
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    paper: str
    does: str
    remembers: str
    parameters: tuple[Parameter, ...]
    build: Callable[..., Transform]  # (*numbers), after the moments by path where they are needed
    needs_moments: bool = False
    low_rank: bool = False  # whether low-rank updates stay so
    at_end: bool = False  # whether it acts in `finalize` alone: every update passes it as it is

    @property
    def usage(self) -> str:
        """How it is written, with defaults: "rect:share=0.4"."""
        shown = [p.name if p.default is None else f"{p.name}={p.default:.4g}" for p in self.parameters]
        return self.name + (":" + ",".join(shown) if shown else "")


TRANSFORMS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "scale", "", "multiplies the update", "nothing", (Parameter("factor"),), scale, low_rank=True,
        ),
        Row(
            "clip-norm", "", "bounds ||Delta||_F of every update", "nothing", (Parameter("bound"),), clip_norm,
            low_rank=True,
        ),
        Row(
            "rect", "arXiv 2401.04700", "keeps the entries that change most, relative to the weight", "nothing",
            (Parameter("share", 0.4, high=1.0),), rect,
        ),
        Row(
            "prune", "arXiv 2405.16821", "restrains the total change, once, at the end of the sequence", "W_0",
            (Parameter("base", math.e, low=1.0),), prune, low_rank=True, at_end=True,
        ),
        Row(
            "revive", "arXiv 2601.11042", "keeps off the dominant singular directions of W_0",
            "those directions", (Parameter("share", high=1.0),), revive, low_rank=True,
        ),
        Row(
            "sphere", "arXiv 2510.01172", "damps the principal input directions of W as it stands", "nothing",
            (Parameter("strength", 0.8, high=1.0), Parameter("share", 0.5, high=1.0)), sphere, low_rank=True,
        ),
        Row(
            "null-space", "arXiv 2410.02355", "keeps off the inputs that text uses: eigenvectors of C0",
            "those directions", (Parameter("threshold", 0.02),), null_space, needs_moments=True, low_rank=True,
        ),
        Row(
            "spectral-cap", "", "no singular value of W above `factor` times the largest of W_0",
            "the largest of W_0", (Parameter("factor", 1.0),), spectral_cap,
        ),
        Row(
            "spectrum-lock", "", "every singular value stays that of W_0", "the spectrum of W_0", (),
            spectrum_lock,
        ),
        Row("norm-lock", "", "||W||_F stays that of W_0", "the norm of W_0", (), norm_lock),
        Row(
            "mose", "arXiv 2601.07873", "rotates W instead of adding to it (closed forms only)", "C0",
            (Parameter("lam", 1.0),), mose, needs_moments=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A transform as a user named it, checked and not yet built."""

    row: Row
    numbers: tuple[float, ...]
    compensated: bool

    def build(self, moments: Mapping[str, Float[Array, "in in"]]) -> Transform:
        """The transform; `moments` are C0 by path of the matrix, empty where none is needed."""
        arguments: tuple[Any, ...] = (moments, *self.numbers) if self.row.needs_moments else self.numbers
        built = self.row.build(*arguments)
        return compensate(built) if self.compensated else built


def read_transform(text: str) -> Choice:
    """The choice that a text names: `name`, `name:number,...`, or either behind `compensate:`.

    Numbers stand in the order of the row's parameters; those left out at the end keep their defaults. Raises
    ConfigError for an unknown name (with the nearest ones), for numbers that are missing, too many,
    malformed or out of range, and for compensation of what takes nothing from updates.
    """
    name, _, rest = text.partition(":")
    if name == COMPENSATE:
        inner = read_transform(rest)
        if inner.compensated:
            raise ConfigError(f"transform {text!r}: {COMPENSATE} stands twice; once is enough")
        if inner.row.at_end:
            raise ConfigError(
                f"transform {text!r}: {inner.row.name} leaves every update as it is, so there is nothing to "
                f"compensate; write {rest}"
            )
        return Choice(inner.row, inner.numbers, True)
    if name not in TRANSFORMS:
        raise ConfigError(unknown_name("transform", name, [*TRANSFORMS, COMPENSATE]))
    row = TRANSFORMS[name]
    return Choice(row, _numbers(row, rest.split(",") if rest else [], text), False)


def _numbers(row: Row, given: list[str], text: str) -> tuple[float, ...]:
    where = f"transform {text!r}: "
    if len(given) > len(row.parameters):
        raise ConfigError(
            f"{where}{len(given)} numbers are given, {row.name} takes {len(row.parameters)}: write {row.usage}"
        )
    words = given + [""] * (len(row.parameters) - len(given))
    return tuple(_number(p, word, where, row.usage) for p, word in zip(row.parameters, words, strict=True))


def _number(parameter: Parameter, word: str, where: str, usage: str) -> float:
    if not word and parameter.default is not None:
        return parameter.default
    if not word:
        raise ConfigError(f"{where}{parameter.name} is missing: write {usage}")
    try:
        number = float(word)
    except ValueError:
        raise ConfigError(f"{where}{parameter.name} is {word!r}, not a number: write {usage}") from None
    if not parameter.low < number <= parameter.high or math.isinf(number):
        most = f" and at most {parameter.high:g}" if math.isfinite(parameter.high) else ""
        raise ConfigError(f"{where}{parameter.name} is {number:g}; it must be above {parameter.low:g}{most}")
    return number


def build_transforms(
    texts: Iterable[str], model: Model, moments: Mapping[int, Float[Array, "d_k d_k"]]
) -> tuple[Transform, ...]:
    """The named transforms, to be handed to `chain`. `moments` are C0 by layer, as editors take them.

    Raises ConfigError for a transform that needs second moments where there are none, StatisticsError (at `init`)
    for a matrix that has none.
    """
    texts = tuple(texts)
    for text in texts:
        if read_transform(text).row.needs_moments and not moments:
            raise ConfigError(
                f"transform {text!r} needs second moments, which are those of the keys of chosen layers: give the "
                f"editor its layers, or leave the transform out"
            )
    by_path = {model.config.edited_path(layer): moment for layer, moment in moments.items()}
    return tuple(read_transform(text).build(by_path) for text in texts)
