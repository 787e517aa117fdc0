"""The controls: what sampling alone gives, and random updates that match real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxedit.diagnostics.controls import beyond_floor, haar, random_update, random_updates, split_half
from jaxedit.diagnostics.path import path_of_factors
from jaxedit.diagnostics.similarity import mean_shift
from jaxedit.errors import ConfigError
from jaxedit.types import LowRank
from tests.cases import same_bits
from tests.diagnostics.matrices import random_matrix, with_values
from tests.diagnostics.test_path import dense, updates

KEY = jax.random.key(5)
FACTORS = LowRank(jnp.asarray(random_matrix(1)[:, :4]), jnp.asarray(random_matrix(2)[:4]))
DELTAS = {"factors": FACTORS, "dense": jnp.asarray(with_values(np.array([5.0, 2.0, 1.0])))}


def product(delta: LowRank | jax.Array) -> np.ndarray:
    return dense(delta) if isinstance(delta, LowRank) else np.asarray(delta, np.float64)


@pytest.mark.parametrize("kind", DELTAS)
@pytest.mark.parametrize("match", ["norm", "spectrum"])
def test_random_updates_match_the_true_one_and_stand_for_nothing(kind: str, match: str) -> None:
    delta = DELTAS[kind]
    draws = [random_update(jax.random.key(i), delta, match) for i in range(20)]
    assert jax.tree.map(jnp.shape, draws[0]) == jax.tree.map(jnp.shape, delta)
    assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {jnp.dtype(jnp.float32)}
    true = product(delta)
    values = scipy.linalg.svdvals(true)
    cosines = []
    for drawn in draws:
        one = product(drawn)
        assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(true), rel=1e-5)
        if match == "spectrum":
            np.testing.assert_allclose(scipy.linalg.svdvals(one), values, atol=1e-5 * values[0])
        cosines.append((one * true).sum() / np.linalg.norm(true) ** 2)
    assert abs(np.mean(cosines)) < 4 * np.std(cosines) / 20**0.5
    assert np.std(cosines) < 0.2
    assert same_bits(random_update(jax.random.key(0), delta, match), draws[0])
    assert not same_bits(draws[1], draws[0])


@pytest.mark.parametrize("match", ["norm", "spectrum"])
def test_of_a_bias_the_norm_is_matched_either_way(match: str) -> None:
    delta = jnp.array([3.0, 0.0, -4.0, 0.0])
    drawn = random_update(KEY, delta, match)
    assert drawn.shape == delta.shape
    assert not np.allclose(drawn, delta)
    assert float(jnp.linalg.norm(drawn)) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("match", ["norm", "spectrum"])
def test_a_log_of_random_updates_has_the_steps_of_the_true_one(match: str) -> None:
    true = updates()
    drawn = random_updates(KEY, true, match)
    first = random_matrix()
    paths = path_of_factors(first, true), path_of_factors(first, drawn)
    np.testing.assert_allclose(paths[0].step, paths[1].step, rtol=1e-6)
    matrices = dense(drawn)
    assert not np.allclose(matrices[0], matrices[1])
    nothing = random_updates(KEY, jax.tree.map(jnp.zeros_like, true), match)
    assert not dense(nothing).any()


def test_haar_columns_are_orthonormal_and_without_a_preferred_direction() -> None:
    drawn = np.asarray(jax.vmap(lambda key: haar(key, 6, 2))(jax.random.split(KEY, 3000)))
    np.testing.assert_allclose(
        np.einsum("nij,nik->njk", drawn, drawn)[::100], np.eye(2)[None].repeat(30, 0), atol=1e-12
    )
    # A coordinate of a uniform direction in R^6: its square is Beta(1/2, 5/2).
    for i in range(6):
        assert scipy.stats.kstest(drawn[:, i, 0] ** 2, scipy.stats.beta(0.5, 2.5).cdf).pvalue > 1e-4
        assert abs(drawn[:, i, 0].mean()) < 4 * (1 / 6 / 3000) ** 0.5


def test_the_floor_is_what_other_prompts_give_and_a_shift_is_beyond_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 8)).astype(np.float32)
    same = split_half(mean_shift, x, x, KEY)
    assert same.floor.shape == (20,)
    # Means of two halves of 50 in 8 dimensions: their squared distance is 2/50 chi^2_8.
    assert float(same.floor.mean()) == pytest.approx((8 * 2 / 50) ** 0.5, rel=0.15)
    assert not beyond_floor(same.floor, same.shift)
    moved = split_half(mean_shift, x, x + np.float32(0.6), KEY)
    assert beyond_floor(moved.floor, moved.shift)
    np.testing.assert_array_equal(moved.floor, same.floor)
    little = split_half(mean_shift, x, x + np.float32(0.01), KEY)
    assert not beyond_floor(little.floor, little.shift)


def test_the_floor_is_rarely_passed_by_chance() -> None:
    """Two models that differ in nothing but the draw of their prompts' vectors."""
    halved = jax.jit(lambda x, y, key: split_half(mean_shift, x, y, key))
    claims = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = (rng.normal(size=(40, 5)).astype(np.float32) for _ in range(2))
        found = halved(x, y, jax.random.key(seed))
        claims.append(bool(beyond_floor(found.floor, found.shift)))
    assert np.mean(claims) <= 0.05


def test_what_cannot_be_halved_or_matched_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least four"):
        split_half(mean_shift, random_matrix(rows=3), random_matrix(rows=3), KEY)
    with pytest.raises(ConfigError, match="'norm' or 'spectrum'"):
        random_update(KEY, FACTORS, "rank")  # type: ignore[arg-type]
