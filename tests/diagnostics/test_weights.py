"""Measures of matrices against numpy and scipy in float64, on random and on degenerate matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from jaxtyping import Array

from jaxedit.diagnostics.leading import leading
from jaxedit.diagnostics.lowrank import Captured, alignment, captured, inner, update_norm
from jaxedit.diagnostics.meanings import PATH_MEASURES, WEIGHT_MEASURES
from jaxedit.diagnostics.norms import drift, size
from jaxedit.diagnostics.path import Path
from jaxedit.diagnostics.spectra import singular_values, spectrum, triplets, triplets_of_factors
from jaxedit.diagnostics.stacked import over_matrices
from jaxedit.diagnostics.weights import GROUPS, Reference, reference, weight_measures
from jaxedit.errors import ConfigError
from jaxedit.types import LowRank
from tests.diagnostics.matrices import COLUMNS, MATRICES, ROWS, orthonormal, random_matrix, with_values

KEY = jax.random.key(0)
EXACT = {"rtol": 1e-10}
every_matrix = pytest.mark.parametrize("name", MATRICES)


def doubles(name: str) -> np.ndarray:
    return MATRICES[name].astype(np.float64)


@every_matrix
def test_sizes_are_those_of_numpy(name: str) -> None:
    w, found = doubles(name), size(MATRICES[name])
    np.testing.assert_allclose(found.frobenius, np.linalg.norm(w), **EXACT)
    np.testing.assert_allclose(found.l1, np.abs(w).sum(), **EXACT)
    np.testing.assert_allclose(found.largest, np.abs(w).max(), **EXACT)
    for spread, axis in ((found.rows, 1), (found.columns, 0)):
        norms = np.linalg.norm(w, axis=axis)
        np.testing.assert_allclose(spread, [norms.mean(), norms.std(), norms.max()], atol=1e-15, **EXACT)


@every_matrix
def test_drift_is_that_of_numpy(name: str) -> None:
    first = random_matrix(9)
    w = MATRICES[name] if MATRICES[name].shape == first.shape else MATRICES[name].T
    found, old, new = drift(w, first), first.astype(np.float64), w.astype(np.float64)
    away, norm = np.linalg.norm(new - old), np.linalg.norm(old)
    cosine = (old * new).sum() / (norm * np.linalg.norm(new)) if new.any() else 0.0
    expected = [away, away / norm, away / new.size, np.linalg.norm(new) / norm, cosine]
    np.testing.assert_allclose(found, expected, atol=1e-15, **EXACT)


def test_a_matrix_that_stays_does_not_drift_and_zeros_have_no_direction() -> None:
    w, zero = random_matrix(), np.zeros((ROWS, COLUMNS), np.float32)
    np.testing.assert_allclose(drift(w, w), [0, 0, 0, 1, 1], atol=1e-15)
    np.testing.assert_array_equal(drift(zero, zero), [0, 0, 0, 0, 0])
    assert np.isinf(drift(w, zero).relative)


@every_matrix
def test_spectra_are_those_of_scipy(name: str) -> None:
    values = scipy.linalg.svdvals(doubles(name))
    mine = singular_values(MATRICES[name])
    np.testing.assert_allclose(mine, values, rtol=1e-12, atol=1e-14 * values[0])
    found = spectrum(mine)
    np.testing.assert_allclose(found.spectral, np.linalg.norm(doubles(name), 2), **EXACT)
    np.testing.assert_allclose(found.nuclear, np.linalg.norm(doubles(name), "nuc"), **EXACT)
    if not values.any():
        assert found == (0, 0, np.inf, 0, 0, 0)
        return
    frobenius = np.linalg.norm(doubles(name))
    np.testing.assert_allclose(found.stable_rank, (frobenius / values[0]) ** 2, **EXACT)
    np.testing.assert_allclose(found.effective_rank, np.exp(scipy.stats.entropy(values)), **EXACT)
    np.testing.assert_allclose(found.energy_ratio, values[0] / frobenius, **EXACT)
    if np.linalg.matrix_rank(doubles(name)) == COLUMNS:
        np.testing.assert_allclose(found.condition, np.linalg.cond(doubles(name)), rtol=1e-8)
    else:
        assert found.condition > 1e7


def test_ranks_count_equal_singular_values() -> None:
    for rank in (1, 3, 15):
        found = spectrum(singular_values(with_values(np.full(rank, 7.0))))
        np.testing.assert_allclose([found.stable_rank, found.effective_rank], rank, rtol=1e-5)


@functools.cache
def compiled(k: int):
    return jax.jit(functools.partial(leading, k=k, key=KEY))


def check(found, dense: np.ndarray, k: int) -> None:
    """The triplets are singular ones, the residual says how nearly, and the values are scipy's."""
    found = jax.device_get(found)
    values = scipy.linalg.svdvals(dense)
    left, right = found.left, found.right
    for basis in (left, right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(found.values, values[:k], rtol=1e-9, atol=1e-9 * values[0])
    defects = [dense @ right - left * found.values, dense.T @ left - right * found.values]
    measured = np.linalg.norm(np.concatenate(defects), axis=0)
    assert (measured <= (found.residual + 1e-12) * values[0]).all()
    following = values[k] if k < len(values) else 0.0
    assert found.gap * values[0] == pytest.approx(values[k - 1] - following, abs=1e-8 * values[0])


@every_matrix
def test_small_matrices_are_decomposed_outright(name: str) -> None:
    found = compiled(3)(MATRICES[name])
    check(found, doubles(name), 3)
    assert found.cycles == 0


SPECTRA = {
    "flat": 1 - 0.002 * np.arange(300),
    "outlier": np.concatenate([[50.0], 1 / np.sqrt(1 + np.arange(299))]),
    "repeated": np.concatenate([np.full(5, 4.0), np.full(295, 1.0)]),
    "rank two": np.array([3.0, 1.0]),
    "zero": np.zeros(1),
    "equal": np.full(300, 2.0),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_leading_triplets_of_large_matrices_are_those_of_scipy(name: str) -> None:
    w = with_values(SPECTRA[name], 360, 300)
    found = compiled(4)(w)
    check(found, w.astype(np.float64), 4)
    assert found.cycles > 0, "found by iteration"
    assert float(found.residual.max()) <= 1e-10


def test_a_wide_matrix_is_a_tall_one_turned() -> None:
    w = with_values(SPECTRA["outlier"], 360, 300)
    check(compiled(4)(w.T), w.T.astype(np.float64), 4)


def test_subspaces_are_as_near_as_residual_over_gap_says() -> None:
    w = with_values(SPECTRA["outlier"], 360, 300)
    loose = jax.device_get(leading(w, 4, KEY, tolerance=1e-3))
    exact = np.linalg.svd(w.astype(np.float64))[2][:4].T
    angle = scipy.linalg.subspace_angles(exact, np.asarray(loose.right)).max()
    assert 1e-13 < angle <= 2 * np.linalg.norm(loose.residual) / loose.gap
    assert loose.cycles < compiled(4)(w).cycles


def test_a_matrix_with_factors_is_their_sum() -> None:
    w, rng = with_values(SPECTRA["outlier"], 360, 300), np.random.default_rng(5)
    delta = LowRank(jnp.asarray(rng.normal(size=(360, 3))), jnp.asarray(rng.normal(size=(3, 300))))
    dense = w.astype(np.float64) + np.asarray(delta.left, np.float64) @ np.asarray(delta.right, np.float64)
    check(leading(w, 4, KEY, added=delta), dense, 4)
    wide = LowRank(_factors(3).right.T, _factors(3).left.T)
    check(leading(random_matrix().T, 3, KEY, added=wide), _dense(random_matrix(), _factors(3)).T, 3)


def test_more_values_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 15"):
        leading(random_matrix(), 16, KEY)


def _factors(rank: int, seed: int = 4) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(
        jnp.asarray(rng.normal(size=(ROWS, rank)), jnp.float32),
        jnp.asarray(rng.normal(size=(rank, COLUMNS)), jnp.float32),
    )


def _dense(w: np.ndarray | float, delta: LowRank) -> np.ndarray:
    return np.asarray(w, np.float64) + np.asarray(delta.left, np.float64) @ np.asarray(
        delta.right, np.float64
    )


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_factors_are_measured_as_their_product_is(rank: int) -> None:
    w, delta, other = random_matrix(), _factors(rank), _factors(2, seed=6)
    dense, second = _dense(0.0, delta), _dense(0.0, other)
    for a, b in ((delta, other), (delta, jnp.asarray(second)), (jnp.asarray(dense), other)):
        near = 1e-6 * np.linalg.norm(dense) * np.linalg.norm(second)
        np.testing.assert_allclose(inner(a, b), (dense * second).sum(), atol=near)
    np.testing.assert_allclose(update_norm(delta), np.linalg.norm(dense), rtol=1e-12)
    cosine = (w.astype(np.float64) * dense).sum() / (
        np.linalg.norm(w.astype(np.float64)) * np.linalg.norm(dense)
    )
    np.testing.assert_allclose(alignment(w, delta), cosine, rtol=1e-10)
    found = jax.device_get(triplets_of_factors(delta))
    values = scipy.linalg.svdvals(dense)[: min(rank, COLUMNS)]
    np.testing.assert_allclose(found.values, values, rtol=1e-10)
    np.testing.assert_allclose((found.left * found.values) @ found.right.T, dense, atol=1e-11)


def test_what_a_subspace_captures_of_an_update() -> None:
    rng, delta = np.random.default_rng(8), _factors(3)
    rows, columns = orthonormal(rng, ROWS, 5), orthonormal(rng, COLUMNS, 4)
    dense = _dense(0.0, delta)
    whole = np.linalg.norm(dense) ** 2
    expected = [
        np.linalg.norm(part) ** 2 / whole
        for part in (rows.T @ dense, dense @ columns, rows.T @ dense @ columns)
    ]
    np.testing.assert_allclose(captured(delta, rows, columns), expected, rtol=1e-10)
    np.testing.assert_allclose(captured(jnp.asarray(dense, jnp.float32), rows, columns), expected, rtol=1e-6)
    found = triplets(dense)
    inside = captured(delta, found.left[:, :3], found.right[:, :3])
    np.testing.assert_allclose(inside, 1, rtol=1e-12)
    outside = captured(delta, found.left[:, 3:], found.right[:, 3:])
    np.testing.assert_allclose(outside, 0, atol=1e-12)


@functools.cache
def compiled_table() -> Any:
    return jax.jit(lambda w, first: weight_measures(w, reference(first, 3, KEY), tuple(GROUPS), KEY))


def table(w: np.ndarray, first: np.ndarray) -> dict[str, np.ndarray]:
    return jax.device_get(compiled_table()(w, first))


def test_the_table_of_an_untouched_matrix_shows_no_change() -> None:
    found = table(random_matrix(), random_matrix())
    for name in ("distance", "input_angle", "output_angle", "input_grassmann", "output_chordal"):
        assert found[name] == pytest.approx(0, abs=1e-9), name
    for name in ("growth", "cosine", "spectral_growth", "input_overlap", "output_overlap"):
        assert found[name] == pytest.approx(1), name
    assert found["input_intruders"] == found["output_intruders"] == 0
    assert found["change_in_both_subspace"] == 0


def test_the_table_sees_an_intruder_and_where_the_change_lies() -> None:
    w, rng = with_values(np.linspace(5, 1, 15)), np.random.default_rng(2)
    left, _, right = np.linalg.svd(w.astype(np.float64))
    new_in = orthonormal(rng, ROWS, ROWS)[:, :1]
    new_in -= left[:, :15] @ (left[:, :15].T @ new_in)
    new_in /= np.linalg.norm(new_in)
    found = table((w + 20 * new_in @ right[:1]).astype(np.float32), w)
    assert found["input_intruders"] == 1, "a direction that no old input vector is like"
    assert found["output_intruders"] == 0, "on this side it is the old first vector"
    assert found["change_in_outputs_subspace"] == pytest.approx(1, rel=1e-5)
    assert found["change_in_inputs_subspace"] == pytest.approx(0, abs=1e-5)
    assert found["input_angle"] == pytest.approx(np.arctan2(20, 5), abs=1e-5)
    assert found["output_angle"] == pytest.approx(0, abs=1e-5)


def test_the_table_agrees_with_itself_on_degenerate_matrices() -> None:
    for name, w in MATRICES.items():
        if w.shape == (ROWS, COLUMNS):
            found = table(w, random_matrix())
            assert not any(np.isnan(value) for value in found.values()), name
            assert found["stable_rank"] == pytest.approx(float(spectrum(singular_values(w)).stable_rank)), (
                name
            )


def test_every_measure_has_a_meaning() -> None:
    assert set(table(random_matrix(), random_matrix(1))) == set(WEIGHT_MEASURES)
    within = (f"step_in_{side}_subspace" for side in Captured._fields)
    assert {f"path_{name}" for name in (*Path._fields, *within, "alignment_share")} == set(PATH_MEASURES)


def test_unknown_groups_are_named() -> None:
    with pytest.raises(ConfigError, match="'spectrum'"):
        weight_measures(random_matrix(), reference(random_matrix(), 2, KEY), ("spectra",), KEY)  # type: ignore[arg-type]


def test_matrices_of_equal_shape_are_measured_together_and_as_alone() -> None:
    first = {"a": random_matrix(0), "b": random_matrix(1).T.copy(), "c": random_matrix(2)}
    now = {path: w + np.float32(0.01) for path, w in first.items()}

    @jax.jit
    def measure(now: dict[str, Array], first: dict[str, Array]) -> dict[str, dict[str, Array]]:
        references = over_matrices(lambda w: reference(w, 3, KEY), first)
        return over_matrices(lambda w, r: weight_measures(w, r, tuple(GROUPS), KEY), now, references)

    found = measure(now, first)
    assert found.keys() == first.keys()
    sizes, in_turn = (over_matrices(size, first, together=n) for n in (None, 1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), sizes, in_turn)
    for path in first:
        alone = table(now[path], first[path])
        for name, value in found[path].items():
            np.testing.assert_allclose(value, alone[name], rtol=1e-8, atol=1e-7, err_msg=f"{path} {name}")


def test_measures_compile_once_over_steps() -> None:
    traces = []

    @jax.jit
    def measure(w: Array, first: Reference) -> dict[str, Array]:
        traces.append(w.shape)
        return weight_measures(w, first, ("size", "drift", "leading", "subspace"), KEY)

    first = reference(random_matrix(), 3, KEY)
    for step in range(5):
        measure(random_matrix() + np.float32(0.1 * step), first)
    assert len(traces) == 1
