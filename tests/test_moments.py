"""Second moments on disk: kept by content, refused where they do not belong."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.errors import StatisticsError
from jaxedit.moments import MomentSource, load_moments, read_moment, write_moment
from jaxedit.pipeline import generator, quiet
from tests.cases import Case, same_bits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def collect(case: Case, source: MomentSource, layers: tuple[int, ...] = (0, 1)) -> dict[int, Array]:
    generate = generator(case.checkpoint, top_k=5)
    return load_moments(source, case.checkpoint, layers, generate, jax.random.key(0), quiet)


def test_a_second_call_reads_the_same_bits(gpt2: Case, cache: Path) -> None:
    source = MomentSource(tokens=256, length=16)
    first = collect(gpt2, source)
    stored = sorted(path.name for path in cache.rglob("*.safetensors"))
    assert stored == ["layer-0.safetensors", "layer-1.safetensors"]
    for file in cache.rglob("*.safetensors"):  # a mark that only reading can bring back
        write_moment(file, jnp.ones((2, 2)), {"weights": gpt2.checkpoint.fingerprint})
    assert all(moment.shape == (2, 2) for moment in collect(gpt2, source).values())
    assert same_bits(collect(gpt2, MomentSource(tokens=256, length=16, cache=False)), first)


def test_layers_are_kept_apart_and_texts_told_apart(gpt2: Case, cache: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tower of Rouen stands by the river. " * 40)
    collect(gpt2, MomentSource(text=str(text), tokens=64, length=16), (0,))
    collect(gpt2, MomentSource(text=str(text), tokens=64, length=16), (0, 1))
    assert len(list(cache.rglob("*.safetensors"))) == 2
    text.write_text("Another text, about another town and its market. " * 40)
    collect(gpt2, MomentSource(text=str(text), tokens=64, length=16), (0,))
    assert len(list(cache.rglob("*.safetensors"))) == 3


def test_moments_in_another_compute_type_are_others(gpt2: Case, cache: Path) -> None:
    source = MomentSource(tokens=64, length=16)
    first = collect(gpt2, source, (0,))
    halved = {path: leaf.astype(jnp.bfloat16) for path, leaf in gpt2.checkpoint.params.items()}
    low = replace(gpt2, checkpoint=replace(gpt2.checkpoint, params=halved))
    assert not same_bits(collect(low, source, (0,)), first)
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_a_text_that_is_too_short_is_refused(gpt2: Case, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Rouen. " * 20)
    with pytest.raises(StatisticsError, match=r"short\.txt gives \d+ tokens .* 5000 are asked for"):
        collect(gpt2, MomentSource(text=str(tmp_path / "short.txt"), tokens=5000, length=16))


def test_a_moment_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "layer-0.safetensors"
    write_moment(file, jnp.eye(3), {"weights": "a" * 64})
    with pytest.raises(StatisticsError, match="belongs to another model"):
        read_moment(file, "b" * 64)
    np.testing.assert_array_equal(read_moment(file, "a" * 64), np.eye(3))


def test_nan_and_damage_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "layer-0.safetensors"
    write_moment(file, jnp.eye(3).at[0, 0].set(jnp.nan), {"weights": "a"})
    with pytest.raises(StatisticsError, match=r"layer-0\.safetensors: the second moment is not finite"):
        read_moment(file, "a")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(StatisticsError, match=r"layer-0\.safetensors cannot be read .*remove it"):
        read_moment(file, "a")
