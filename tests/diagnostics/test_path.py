"""The way of a matrix through a sequence: from factors alone, and as dense matrices in numpy have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.diagnostics.lowrank import update_products
from jaxedit.diagnostics.path import Path, alignment_share, begin, path_of_factors, walk
from jaxedit.types import LowRank
from tests.diagnostics.matrices import COLUMNS, ROWS, random_matrix

UPDATES, RANK = 12, 2
compiled_path, compiled_walk = jax.jit(path_of_factors), jax.jit(walk)


def updates(scale: float = 0.3, count: int = UPDATES, seed: int = 5) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(
        jnp.asarray(scale * rng.normal(size=(count, ROWS, RANK)), jnp.float32),
        jnp.asarray(rng.normal(size=(count, RANK, COLUMNS)), jnp.float32),
    )


def dense(factors: LowRank) -> np.ndarray:
    return np.asarray(factors.left, np.float64) @ np.asarray(factors.right, np.float64)


def expected_path(first: np.ndarray, deltas: np.ndarray) -> dict[str, np.ndarray]:
    """Every entry from the matrices themselves, one step after the other."""
    rows: list[dict[str, float]] = []
    w0 = w = first.astype(np.float64)
    length, norm = 0.0, np.linalg.norm

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / (norm(a) * norm(b))) if a.any() and b.any() else 0.0

    for delta in deltas:
        after = w + delta
        length += norm(delta)
        rows.append(
            {
                "norm": norm(after),
                "growth": norm(after) / norm(w0),
                "step": norm(delta),
                "relative_step": norm(delta) / norm(w),
                "distance": norm(after - w0),
                "relative_distance": norm(after - w0) / norm(w0),
                "length": length,
                "efficiency": norm(after - w0) / length if length else 0.0,
                "alignment": cosine(w, delta),
                "first_alignment": cosine(w0, delta),
                "persistence": cosine(w - w0, delta),
                "cross": 2 * (w * delta).sum(),
            }
        )
        w = after
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def agree(found: Path, expected: dict[str, np.ndarray], tolerance: float = 1e-10) -> None:
    """Each entry to that share of the largest of its kind."""
    for name, values in expected.items():
        near = tolerance * np.abs(values).max()
        np.testing.assert_allclose(getattr(found, name), values, rtol=0, atol=near, err_msg=name)


@pytest.mark.parametrize("scale", [0.3, 1e-5, 30.0])
def test_a_path_from_factors_is_that_of_dense_matrices(scale: float) -> None:
    first, factors = random_matrix(), updates(scale)
    expected = expected_path(first, dense(factors))
    agree(compiled_path(first, factors), expected)
    agree(compiled_walk(first, begin(first), factors)[1], expected)
    agree(compiled_walk(first, begin(first), jnp.asarray(dense(factors), jnp.float32))[1], expected, 1e-5)


def test_a_path_goes_on_from_chunk_to_chunk() -> None:
    first, factors = random_matrix(), updates()
    walked, parts = begin(first), []
    for start in range(0, UPDATES, 4):
        walked, part = compiled_walk(first, walked, jax.tree.map(lambda x: x[start : start + 4], factors))  # noqa: B023
        parts.append(part)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    agree(whole, expected_path(first, dense(factors)))
    np.testing.assert_allclose(walked.change, dense(factors).sum(axis=0), atol=1e-12)


def test_updates_left_out_are_steps_of_nothing() -> None:
    first, factors = random_matrix(), updates()
    kept = np.array([i not in (0, 3, 4) for i in range(UPDATES)], np.float32)
    masked = factors._replace(left=factors.left * kept[:, None, None])
    expected = expected_path(first, dense(masked))
    agree(compiled_path(first, masked), expected)
    assert compiled_path(first, masked).alignment[3] == 0


def test_there_and_back_is_no_distance() -> None:
    first, there = random_matrix(), updates(count=3)
    back = LowRank(-there.left[::-1], there.right[::-1])
    both = jax.tree.map(lambda *x: jnp.concatenate(x), there, back)
    for path in (compiled_path(first, both), compiled_walk(first, begin(first), both)[1]):
        assert path.distance[-1] == pytest.approx(0, abs=1e-6)
        assert path.efficiency[-1] == pytest.approx(0, abs=1e-6)
        assert path.norm[-1] == pytest.approx(np.linalg.norm(first.astype(np.float64)), rel=1e-12)


def test_straight_on_is_efficient_and_random_steps_lose_by_the_root() -> None:
    one = updates(count=1)
    straight = jax.tree.map(lambda x: jnp.repeat(x, UPDATES, axis=0), one)
    path = compiled_path(random_matrix(), straight)
    np.testing.assert_allclose(path.efficiency, 1, rtol=1e-7)
    np.testing.assert_allclose(path.persistence[1:], 1, rtol=1e-7)
    many = compiled_path(random_matrix(), updates(count=200))
    np.testing.assert_allclose(many.efficiency[-1] * 200**0.5, 1, rtol=0.1)


def test_the_norm_grows_by_what_it_is_made_of() -> None:
    path = jax.device_get(compiled_path(random_matrix(), updates()))
    squares = np.concatenate([[np.linalg.norm(random_matrix().astype(np.float64))], path.norm]) ** 2
    np.testing.assert_allclose(np.diff(squares), path.cross + path.step**2, rtol=1e-9)


def test_the_reason_of_growth() -> None:
    first = random_matrix()
    along = LowRank(jnp.asarray(first)[None] * 0.01, jnp.eye(COLUMNS)[None])
    along = jax.tree.map(lambda x: jnp.repeat(x, 5, axis=0), along)
    against = along._replace(left=-along.left)
    assert (alignment_share(compiled_path(first, along)) > 0.97).all()
    assert (alignment_share(compiled_path(first, against)) < -0.97).all()
    assert abs(alignment_share(compiled_path(first, updates(count=200)))[-1]) < 0.2


def test_products_of_updates_in_blocks_are_those_of_dense_matrices() -> None:
    one, other = updates(count=4), updates(count=3, seed=8)
    expected = np.einsum("eio,fio->ef", dense(one), dense(other))
    np.testing.assert_allclose(update_products(one, other), expected, rtol=1e-10)


def test_a_zero_matrix_and_no_update_make_no_nan() -> None:
    nothing = jax.tree.map(jnp.zeros_like, updates())
    for first in (np.zeros((ROWS, COLUMNS), np.float32), random_matrix()):
        for factors in (nothing, updates()):
            for path in (compiled_path(first, factors), compiled_walk(first, begin(first), factors)[1]):
                assert not any(np.isnan(leaf).any() for leaf in path)


def test_paths_of_layers_together_are_those_of_each() -> None:
    firsts, factors = np.stack([random_matrix(1), random_matrix(2)]), [updates(seed=1), updates(seed=2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *factors)
    together = jax.jit(jax.vmap(path_of_factors))(firsts, stacked)
    for i in range(2):
        agree(jax.tree.map(lambda x: x[i], together), expected_path(firsts[i], dense(factors[i])))  # noqa: B023
