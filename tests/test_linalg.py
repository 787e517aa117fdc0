"""The linear algebra against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxedit.linalg import (
    change_norm,
    dense,
    excluded,
    frobenius,
    null_projector,
    restricted_inverse,
    safe_norm,
    settled,
    spd_inverse,
    spd_solve,
    woodbury,
)
from jaxedit.types import LowRank
from tests.cases import relative, same_bits


def spd(rng: np.random.Generator, size: int, condition: float) -> np.ndarray:
    """Symmetric positive definite, eigenvalues from 1 down to 1 / condition."""
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return (basis * np.geomspace(1.0, 1.0 / condition, size)) @ basis.T


def in_double(x: np.ndarray) -> jax.Array:
    with jax.enable_x64(True):
        return jnp.asarray(x, jnp.float64)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), condition=st.sampled_from([1e0, 1e3, 1e6, 1e9]))
def test_inverse_is_good_to_double_precision_for_any_condition(seed: int, condition: float) -> None:
    matrix = spd(np.random.default_rng(seed), 12, condition)
    inverse = np.asarray(spd_inverse(in_double(matrix)))
    assert inverse.dtype == np.float64
    assert np.linalg.norm(matrix @ inverse - np.eye(12)) <= 1e-14 * condition + 1e-12


def test_inverse_of_what_is_not_positive_definite_is_nan() -> None:
    for matrix in (np.diag([1.0, -1.0]), np.full((2, 2), np.nan)):
        assert not np.isfinite(np.asarray(spd_inverse(in_double(matrix)))).any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), condition=st.sampled_from([1e0, 1e3, 1e6]))
def test_woodbury_is_the_inverse_of_the_sum(seed: int, condition: float) -> None:
    rng = np.random.default_rng(seed)
    matrix, columns = spd(rng, 12, condition), rng.standard_normal((12, 3))
    inverse = np.linalg.inv(matrix)
    updated = woodbury(in_double(inverse), in_double(columns), in_double(inverse @ columns))
    assert updated.dtype == np.float64
    assert relative(updated, np.linalg.inv(matrix + columns @ columns.T)) <= 1e-14 * condition + 1e-12
    assert np.array_equal(updated, np.asarray(updated).T)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weight=st.sampled_from([1e-3, 1.0, 1e3]))
def test_weighted_woodbury_is_the_inverse_of_the_weighted_sum(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    matrix, columns = spd(rng, 12, 1e2), rng.standard_normal((12, 3))
    inverse = np.linalg.inv(matrix)
    updated = woodbury(in_double(inverse), in_double(columns), in_double(inverse @ columns), weight)
    assert relative(updated, np.linalg.inv(matrix + weight * columns @ columns.T)) <= 1e-10


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), condition=st.sampled_from([1e0, 1e3, 1e6]))
def test_solve_is_the_inverse_times(seed: int, condition: float) -> None:
    rng = np.random.default_rng(seed)
    matrix, right = spd(rng, 12, condition), rng.standard_normal((12, 3))
    assert relative(spd_solve(in_double(matrix), in_double(right)), np.linalg.solve(matrix, right)) <= (
        1e-14 * condition + 1e-12
    )


def test_null_projector_by_threshold_and_by_fraction() -> None:
    rng = np.random.default_rng(0)
    moment = spd(rng, 12, 1e6)
    values, vectors = np.linalg.eigh(moment)
    expected = vectors[:, :9] @ vectors[:, :9].T
    by_fraction = null_projector(in_double(moment), fraction=0.75)
    by_threshold = null_projector(in_double(moment), threshold=float(values[8:10].mean()))
    assert relative(by_fraction, expected) <= 1e-10
    assert relative(by_threshold, expected) <= 1e-10
    assert relative(null_projector(in_double(moment), fraction=1.0), np.eye(12)) <= 1e-12
    moment[0, 0] = np.nan
    assert not np.isfinite(np.asarray(null_projector(in_double(moment), fraction=0.75))).any()


def test_float32_decomposition_misses_the_null_space_where_neighbours_are_close() -> None:
    """Why it is in float64: a gap of 1e-7 between the last eigenvalue kept and the first dropped."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    moment = (basis * (1 + 1e-7 * np.arange(40))) @ basis.T
    moment = (moment + moment.T) / 2
    expected = basis[:, :20] @ basis[:, :20].T
    assert relative(null_projector(in_double(moment), fraction=0.5), expected) <= 1e-7
    _, vectors = np.linalg.eigh(moment.astype(np.float32))
    assert relative(vectors[:, :20] @ vectors[:, :20].T, expected) > 1e-2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.sampled_from([1, 5, 12]))
def test_restricted_inverse_is_the_inverse_in_a_basis_of_the_range(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = spd(rng, 12, 1e3)
    basis, _ = np.linalg.qr(rng.standard_normal((12, rank)))
    expected = basis @ np.linalg.inv(basis.T @ matrix @ basis) @ basis.T
    assert relative(restricted_inverse(in_double(matrix), in_double(basis @ basis.T)), expected) <= 1e-10


def test_nothing_to_write_within_no_null_space() -> None:
    assert not np.asarray(restricted_inverse(in_double(np.eye(3)), in_double(np.zeros((3, 3))))).any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_exclusion_takes_out_the_span_once_and_ignores_zeros(seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((12, 9)))
    projector, columns = basis @ basis.T, rng.standard_normal((12, 3))
    left, _, _ = np.linalg.svd(projector @ columns, full_matrices=False)
    expected = (projector - left @ left.T) / 4
    padded = np.concatenate([columns, np.zeros((12, 2)), columns[:, :1] + columns[:, 1:2]], axis=1)
    for taken in (columns, padded):
        updated = excluded(in_double(projector / 4), in_double(taken), in_double(projector / 4 @ taken))
        assert relative(updated, expected) <= 1e-10
        again = excluded(updated, in_double(taken), in_double(np.asarray(updated) @ taken))
        assert relative(again, expected) <= 1e-10


def test_norm_has_gradient_zero_at_zero_and_the_unit_vector_elsewhere() -> None:
    gradient = jax.grad(lambda x: safe_norm(x).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)


def test_norm_of_a_broken_vector_says_so() -> None:
    norms = safe_norm(jnp.array([[jnp.nan, 1.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(norms, [np.nan, 5.0])


def test_dense_and_frobenius_are_numpys() -> None:
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((7, 2)).astype(np.float32),
        rng.standard_normal((2, 5)).astype(np.float32),
    )
    product = dense(LowRank(jnp.asarray(left), jnp.asarray(right)))
    assert relative(product, left.astype(np.float64) @ right) <= 1e-6
    assert dense(product) is product
    assert float(frobenius(product)) == pytest.approx(
        np.linalg.norm(left.astype(np.float64) @ right), rel=1e-6
    )
    assert float(frobenius(jnp.zeros((3, 3)))) == 0.0


def test_norm_of_factors_is_that_of_their_product_also_where_they_cancel() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 2), (2, 5)))
    cancelling = np.c_[left, left], np.r_[right, -right * np.float32(1 - 1e-4)]
    for parts in ((left, right), cancelling, (0 * left, right), (left[:, :0], right[:0])):
        exact = np.linalg.norm(parts[0].astype(np.float64) @ parts[1])
        assert float(change_norm(LowRank(*map(jnp.asarray, parts)))) == pytest.approx(exact, rel=1e-6)
    assert float(change_norm(jnp.asarray(left))) == pytest.approx(np.linalg.norm(left), rel=1e-6)
    assert np.isnan(change_norm(LowRank(jnp.full((7, 2), jnp.nan), jnp.asarray(right))))


def test_settled_factors_are_the_same_bits_or_nan_all_over() -> None:
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((5, 2)).astype(np.float32),
        rng.standard_normal((2, 3)).astype(np.float32),
    )
    delta = LowRank(jnp.asarray(left), jnp.asarray(right))
    assert same_bits(jax.jit(settled)(delta), delta)
    for bad in (np.nan, np.inf):
        broken = jax.jit(settled)(delta._replace(left=delta.left.at[3, 1].set(bad)))
        assert all(bool(jnp.isnan(part).all()) for part in broken)
    whole = jnp.asarray(left).at[0, 0].set(jnp.nan)
    assert settled(whole) is whole


def test_frobenius_of_bfloat16_sums_in_float32() -> None:
    ones = jnp.ones(10_000, jnp.bfloat16)  # a bfloat16 sum of ones stops at 256
    assert float(frobenius(ones)) == pytest.approx(100.0)
