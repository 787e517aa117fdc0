"""Angles, principal subspaces and shapes against scipy, identities, and chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxedit.diagnostics.controls import haar
from jaxedit.diagnostics.numbers import in_float64
from jaxedit.diagnostics.subspaces import (
    anisotropy,
    apart,
    chance_overlap,
    effective_rank,
    explained,
    intruders,
    principal,
    principal_angles,
    subspace_shift,
)
from tests.diagnostics.matrices import MATRICES, orthonormal

D = 20
KEY = jax.random.key(1)


def rotated(basis: np.ndarray, angles: np.ndarray, seed: int = 0) -> np.ndarray:
    """The basis with each column turned by its angle into a direction orthogonal to all of them."""
    rng = np.random.default_rng(seed)
    k = basis.shape[1]
    other = rng.normal(size=basis.shape)
    other -= basis @ (basis.T @ other)
    other = np.linalg.qr(other)[0]
    turned = basis * np.cos(angles) + other * np.sin(angles)
    return turned @ orthonormal(rng, k, k)


def test_the_same_subspace_has_no_angles() -> None:
    rng = np.random.default_rng(0)
    basis = orthonormal(rng, D, 4)
    np.testing.assert_allclose(principal_angles(basis, basis), 0, atol=1e-15)
    np.testing.assert_allclose(principal_angles(basis, basis @ orthonormal(rng, 4, 4)), 0, atol=1e-14)


def test_orthogonal_subspaces_are_a_right_angle_apart() -> None:
    whole = orthonormal(np.random.default_rng(0), D, D)
    np.testing.assert_allclose(principal_angles(whole[:, :4], whole[:, 4:9]), np.pi / 2, atol=1e-14)


@pytest.mark.parametrize("angles", [[0.1, 0.7, 1.2], [1e-12, 1e-9, 1e-6], [np.pi / 2 - 1e-10, 1.5, 0.5]])
def test_known_rotations_are_found_small_ones_too(angles: list[float]) -> None:
    basis = orthonormal(np.random.default_rng(3), D, 3)
    found = principal_angles(basis, rotated(basis, np.array(angles)))
    np.testing.assert_allclose(found, sorted(angles), rtol=1e-3, atol=1e-15)
    np.testing.assert_allclose(found, sorted(angles), atol=1e-14)


@pytest.mark.parametrize(("k", "j"), [(3, 3), (5, 2), (2, 5), (1, 1), (15, 12)])
def test_angles_are_those_of_scipy(k: int, j: int) -> None:
    rng = np.random.default_rng(k)
    one, other = orthonormal(rng, D, k), orthonormal(rng, D, j)
    expected = np.sort(scipy.linalg.subspace_angles(one, other))
    found = apart(one, other)
    np.testing.assert_allclose(found.angles, expected, atol=1e-12)
    assert found.grassmann == pytest.approx(np.linalg.norm(expected))
    projectors = np.linalg.norm(one @ one.T - other @ other.T) ** 2
    assert found.chordal**2 == pytest.approx((projectors - abs(k - j)) / 2)
    assert found.overlap == pytest.approx(np.linalg.norm(one.T @ other) ** 2 / min(k, j))


@pytest.mark.parametrize(("k", "j"), [(3, 3), (2, 6), (1, 1)])
def test_random_subspaces_overlap_by_chance(k: int, j: int) -> None:
    count = 4000
    keys = jax.random.split(KEY, 2 * count).reshape(2, count)
    ones, others = (jax.vmap(lambda key: haar(key, D, size))(keys[i]) for i, size in enumerate((k, j)))  # noqa: B023
    found = jax.vmap(apart)(ones, others)
    mean, std = chance_overlap(D, k, j)
    assert mean == pytest.approx(max(k, j) / D)
    assert float(found.chance[0]) == mean
    assert float(found.overlap.mean()) == pytest.approx(mean, abs=4 * std / count**0.5)
    assert float(found.overlap.std()) == pytest.approx(std, rel=0.1)


def test_chance_is_certain_where_there_is_no_choice() -> None:
    assert chance_overlap(4, 4, 4) == (1.0, 0.0)
    assert chance_overlap(1, 1, 1) == (1.0, 0.0)


def test_intruders_are_like_none_of_the_old_vectors() -> None:
    whole = orthonormal(np.random.default_rng(0), D, D)
    old = whole[:, :10]
    mixed = (whole[:, 0] + whole[:, 12]) / np.sqrt(2)
    spread = old.sum(axis=1) / np.sqrt(10)
    now = np.stack([whole[:, 3], -whole[:, 4], whole[:, 11], mixed, spread], axis=1)
    assert intruders(now, old) == 2, "the new direction, and the one spread over ten"
    assert intruders(now, old, 0.8) == 3
    assert intruders(now, old, 0.1) == 1


def vectors(seed: int = 0, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = np.concatenate([[8, 5, 3], np.linspace(0.5, 0.1, D - 3)])
    mixed = (rng.normal(size=(count, D)) * scales) @ orthonormal(np.random.default_rng(7), D, D).T
    return (mixed + 3).astype(np.float32)


def test_principal_directions_are_those_of_the_covariance() -> None:
    x = vectors()
    found = principal(x, 3, KEY)
    values, directions = np.linalg.eigh(np.cov(x.astype(np.float64).T, bias=True))
    np.testing.assert_allclose(np.square(found.values) / len(x), values[::-1][:3], rtol=1e-10)
    assert scipy.linalg.subspace_angles(np.asarray(found.right), directions[:, -3:]).max() < 1e-7
    assert explained(x, found.right) == pytest.approx(values[-3:].sum() / values.sum())
    np.testing.assert_allclose(explained(x, np.eye(D)), 1, rtol=1e-12)
    assert explained(np.ones((5, D), np.float32), np.eye(D)[:, :2]) == 0


def test_a_shift_of_subspaces() -> None:
    x = vectors()
    same = subspace_shift(x, 2 * x + 5, 3, KEY)
    np.testing.assert_allclose(same.apart.angles, 0, atol=1e-5)
    assert same.explained_after == pytest.approx(float(same.explained_before), rel=1e-5)
    turn = scipy.linalg.expm(_skew(D))
    moved = subspace_shift(x, (x @ turn).astype(np.float32), 3, KEY)
    old = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64))[2][:3].T
    expected = np.sort(scipy.linalg.subspace_angles(old, turn.T @ old))
    np.testing.assert_allclose(moved.apart.angles, expected, atol=1e-5)
    assert moved.explained_after < moved.explained_before
    assert moved.explained_own == pytest.approx(float(moved.explained_before), rel=1e-4)
    assert moved.residual <= 1e-10
    assert moved.gap > 0.1


def _skew(d: int) -> np.ndarray:
    a = 0.2 * np.random.default_rng(1).normal(size=(d, d))
    return a - a.T


@pytest.mark.parametrize("name", MATRICES)
def test_shapes_of_sets_are_those_of_numpy(name: str) -> None:
    x = MATRICES[name].astype(np.float64)
    values = scipy.linalg.svdvals(x - x.mean(axis=0))
    if values[0] > 1e-12 * np.abs(x).max() and values.any():
        share = values / values.sum()
        assert effective_rank(MATRICES[name]) == pytest.approx(np.exp(scipy.stats.entropy(share)), rel=1e-8)
    else:
        assert effective_rank(MATRICES[name]) == 0
    units = [row / np.linalg.norm(row) for row in x if row.any()]
    cosines = [a @ b for i, a in enumerate(units) for j, b in enumerate(units) if i != j]
    expected = np.mean(cosines) if cosines else 0.0
    assert anisotropy(MATRICES[name]) == pytest.approx(expected, abs=1e-10)


def test_measures_ask_for_full_precision() -> None:
    """float64 inside, whatever the caller's default; the caller's stays as it was."""
    basis = orthonormal(np.random.default_rng(0), D, 3).astype(np.float32)
    text = str(jax.make_jaxpr(lambda a: principal_angles(a, a))(basis))
    assert "f64" in text
    assert "HIGHEST" in text
    assert jnp.ones(1).dtype == jnp.float32

    @in_float64
    def kinds(numbers, count, flag):
        return numbers.dtype, count, flag.dtype

    assert kinds(np.ones(2, np.float32), 3, np.ones(1, bool)) == (np.float64, 3, np.bool_)
