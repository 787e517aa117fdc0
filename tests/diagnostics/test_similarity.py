"""CKA, Procrustes, Frechet distance and the plane map against scipy, and what each can and cannot see."""

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance as distances
from jaxtyping import Array

from jaxedit.diagnostics.maps import BINS, PlaneMap, density_overlap, hausdorff, plane_map
from jaxedit.diagnostics.similarity import (
    frechet,
    linear_cka,
    mean_shift,
    norm_difference,
    nuclear_of_product,
    procrustes,
)
from tests.diagnostics.matrices import MATRICES, orthonormal, random_matrix

KEY = jax.random.key(2)


@jax.jit
def drawn(x: Array, y: Array) -> PlaneMap:
    return plane_map(x, y, KEY)


PAIRS = [(name, other) for name in MATRICES for other in ("random", "rank two", "zero") if name != "wide"]


def centred(name: str) -> np.ndarray:
    x = MATRICES[name].astype(np.float64)
    return x - x.mean(axis=0)


def rotation(d: int = 15, seed: int = 0) -> np.ndarray:
    return orthonormal(np.random.default_rng(seed), d, d)


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_cka_is_the_normalised_product_of_centred_grams(name: str, other: str) -> None:
    n = len(MATRICES[name])
    centre = np.eye(n) - 1 / n
    grams = [centre @ (x @ x.T) @ centre for x in (MATRICES[k].astype(np.float64) for k in (name, other))]
    sizes = [np.linalg.norm(gram) for gram in grams]
    found = float(linear_cka(MATRICES[name], MATRICES[other]))
    if name in ("constant", "zero") or other == "zero":
        assert found == 0
    else:
        assert found == pytest.approx((grams[0] * grams[1]).sum() / np.prod(sizes), rel=1e-9)
    wide = [np.tile(MATRICES[k], (1, 3)) for k in (name, other)]
    assert float(linear_cka(*wide)) == pytest.approx(found, rel=1e-9), "by the other product"


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_procrustes_is_that_of_scipy(name: str, other: str) -> None:
    x, y = centred(name), centred(other)
    length = np.linalg.norm(x)
    found = procrustes(MATRICES[name], MATRICES[other])
    if length <= 1e-12 * np.abs(MATRICES[name]).max():
        assert not any(np.isnan(value) for value in found)
        return
    best = scipy.linalg.orthogonal_procrustes(x, y)[0]
    assert found.moved == pytest.approx(np.linalg.norm(y - x) / length, rel=1e-9, abs=1e-12)
    assert found.residual == pytest.approx(np.linalg.norm(y - x @ best) / length, rel=1e-6, abs=1e-6)


def test_a_common_rotation_is_seen_by_procrustes_and_not_by_cka() -> None:
    x = random_matrix()
    turned = (x @ rotation()).astype(np.float32)
    found = procrustes(x, turned)
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-6)
    assert found.residual == pytest.approx(0, abs=1e-4)
    assert found.moved > 1
    assert found.rotation == pytest.approx(1, abs=1e-6)


def test_a_change_of_each_vector_for_itself_is_no_rotation() -> None:
    x, noise = random_matrix(rows=400, columns=8), random_matrix(8, rows=400, columns=8)
    found = procrustes(x, x + 0.5 * noise)
    assert found.moved == pytest.approx(0.5, rel=0.05)
    assert found.residual == pytest.approx(0.5, rel=0.05)
    assert found.rotation == pytest.approx(7 / 800, rel=0.7)
    assert linear_cka(x, x + 0.5 * noise) < 0.95
    np.testing.assert_allclose(procrustes(x, x), 0, atol=1e-7)


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_frechet_distance_is_that_of_the_covariances(name: str, other: str) -> None:
    x, y = MATRICES[name].astype(np.float64), MATRICES[other].astype(np.float64)[:20]
    scale = max(np.abs(x).max(), np.abs(y).max(), 1e-300)
    means = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    covariances = [np.cov(z.T, bias=True) for z in (x, y)]
    # Of a product of degenerate covariances the root is not defined to half of the digits; eigenvalues are.
    cross = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    expected = means + sum(np.trace(c) for c in covariances) - 2 * cross
    found = float(frechet(MATRICES[name], MATRICES[other][:20]))
    assert found == pytest.approx(max(expected, 0), rel=1e-5, abs=1e-5 * scale**2)
    assert float(mean_shift(x, y)) == pytest.approx(means**0.5, rel=1e-9)


def test_frechet_distance_is_that_of_scipys_root() -> None:
    x, y = random_matrix(rows=60, columns=6), random_matrix(4, rows=50, columns=6) * 2 + 1
    a, b = (np.cov(z.astype(np.float64).T, bias=True) for z in (x, y))
    expected = np.sum((x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)) ** 2)
    expected += np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, x + 2) == pytest.approx(24, rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 9, 6), (9, 4, 6), (9, 8, 3), (2, 3, 11)])
def test_nuclear_norms_of_products(shape: tuple[int, int, int]) -> None:
    n, m, r = shape
    a, b = random_matrix(rows=n, columns=r), random_matrix(1, rows=m, columns=r)
    expected = np.linalg.norm(a.astype(np.float64) @ b.astype(np.float64).T, "nuc")
    assert nuclear_of_product(a, b) == pytest.approx(expected, rel=1e-10)


def test_hausdorff_is_that_of_scipy() -> None:
    a, b = random_matrix(rows=30, columns=2), random_matrix(1, rows=20, columns=2) + 1
    expected = max(distances.directed_hausdorff(a, b)[0], distances.directed_hausdorff(b, a)[0])
    assert hausdorff(a, b) == pytest.approx(expected, rel=1e-6)
    assert hausdorff(a, a) == 0


def test_densities_overlap_by_their_shared_area() -> None:
    a, b = random_matrix(rows=500, columns=1)[:, 0], random_matrix(1, rows=300, columns=1)[:, 0] + 1
    ends = (min(a.min(), b.min()), max(a.max(), b.max()))
    one, other = (np.histogram(x.astype(np.float64), bins=BINS, range=ends)[0] / len(x) for x in (a, b))
    assert density_overlap(a, b) == pytest.approx(np.minimum(one, other).sum(), abs=1e-12)
    assert density_overlap(a, a) == pytest.approx(1)
    assert density_overlap(a, a + 100) == 0
    assert density_overlap(np.ones(3, np.float32), np.ones(4, np.float32)) == pytest.approx(1)


def test_the_map_of_a_set_that_stays_and_of_one_that_leaves() -> None:
    x = random_matrix(rows=400, columns=8) * np.array([5, 3, 1, 1, 1, 1, 1, 1], np.float32)
    same, near, gone = (drawn(x, y) for y in (x, x + np.float32(0.1) * x[::-1], x + 100))
    np.testing.assert_allclose(same.overlap, 1, rtol=1e-9)
    assert same.hausdorff == pytest.approx(0, abs=1e-9)
    assert same.inside == pytest.approx(0.95, abs=0.005)
    assert 0.8 < near.overlap.min() < 1
    assert 0.85 < near.inside < 1
    np.testing.assert_allclose(gone.overlap, 0, atol=1e-9)
    assert gone.inside == 0
    assert gone.hausdorff > 10
    fresh = drawn(x, random_matrix(3, rows=400, columns=8) * x.std(axis=0))
    assert fresh.inside == pytest.approx(0.95, abs=0.04), "others of the same kind lie where these lie"
    variance = np.asarray(same.before).var(axis=0)
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T, bias=True))
    np.testing.assert_allclose(variance, values[::-1][:2], rtol=1e-8)


@pytest.mark.parametrize("name", MATRICES)
def test_a_map_of_anything_is_a_map(name: str) -> None:
    found = drawn(MATRICES[name], MATRICES[name])
    assert not any(np.isnan(leaf).any() for leaf in found)
    np.testing.assert_allclose(found.overlap, 1, rtol=1e-9)
    assert found.inside >= 0.9


@pytest.mark.parametrize("name", MATRICES)
def test_norm_difference_is_that_of_numpy_either_way(name: str) -> None:
    x, y = MATRICES[name].astype(np.float64), MATRICES["random"][:20].astype(np.float64)
    one, other = (np.linalg.norm(vectors, axis=1).mean() for vectors in (x, y))
    expected = 2 * abs(one - other) / (one + other)
    assert float(norm_difference(x, y)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(norm_difference(y, x)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(norm_difference(0 * x, 0 * x)) == 0
