"""Growth laws: known ones found again, fits against scipy, and intervals that hold what they say."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize

from jaxedit.diagnostics.growth import bootstrap, compare, fit, winner
from jaxedit.diagnostics.laws import LAWS
from jaxedit.diagnostics.path import alignment_share, path_of_factors
from jaxedit.errors import ConfigError
from jaxedit.types import LowRank
from tests.diagnostics.matrices import random_matrix

STEPS = np.arange(1.0, 101.0)
KEY = jax.random.key(0)
TRUE: dict[str, tuple[tuple[float, ...], np.ndarray]] = {
    "constant": ((40.0,), np.full(100, 40.0)),
    "linear": ((40.0, 0.3), 40 + 0.3 * STEPS),
    "sqrt": ((40.0, 25.0), np.sqrt(40.0**2 + 25 * STEPS)),
    "power": ((40.0, 0.02, 1.7), 40 + 0.02 * STEPS**1.7),
    "exponential": ((40.0, 0.02), 40 * np.exp(0.02 * STEPS)),
}
CURVES = {
    "linear": lambda t, a, b: a + b * t,
    "sqrt": lambda t, a, b: np.sqrt(a * a + b * t),
    "power": lambda t, a, b, c: a + b * t**c,
    "exponential": lambda t, a, b: a * np.exp(b * t),
}


def double(function: Any) -> Any:
    """The compiled function on float64 arguments."""
    compiled = jax.jit(function)

    def called(*args: Any) -> Any:
        with jax.enable_x64(True):
            return jax.device_get(compiled(*args))

    return called


@functools.cache
def compared() -> Any:
    return double(compare)


@functools.cache
def redrawn() -> Any:
    return double(lambda t, y: bootstrap("linear", t, y, KEY, repeats=5))


def noisy(law: str, seed: int, size: float = 0.2, along: float = 0.0) -> np.ndarray:
    """The law with Gaussian noise; each draw keeps a share `along` of the one before."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=100) * size
    for i in range(1, 100):
        noise[i] = along * noise[i - 1] + (1 - along**2) ** 0.5 * noise[i]
    return TRUE[law][1] + noise


@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_is_found_to_the_last_digits(law: str) -> None:
    params, values = TRUE[law]
    found = compared()(STEPS, values).fits[law]
    np.testing.assert_allclose(found.params, params, rtol=1e-6)
    np.testing.assert_allclose(found.curve, values, rtol=1e-9)
    assert found.rmse < 1e-7
    assert found.foresight < 1e-5
    assert winner(compared()(STEPS, values)) == law


@pytest.mark.parametrize("law", CURVES)
def test_fits_and_their_errors_are_those_of_scipy(law: str) -> None:
    values = noisy(law, 3)
    found = compared()(STEPS, values).fits[law]
    params, covariance = scipy.optimize.curve_fit(CURVES[law], STEPS, values, p0=TRUE[law][0], method="lm")
    np.testing.assert_allclose(found.params, params, rtol=1e-4)
    np.testing.assert_allclose(found.error, np.sqrt(np.diag(covariance)), rtol=1e-2)
    rss = np.sum((CURVES[law](STEPS, *params) - values) ** 2)
    assert found.rmse == pytest.approx((rss / 100) ** 0.5, rel=1e-6)
    assert found.r2 == pytest.approx(1 - rss / np.sum((values - values.mean()) ** 2), rel=1e-6)
    q = len(params) + 1
    scores = {name: score(found, q, values) for name, score in SCORES.items()}
    assert found.bic == pytest.approx(scores["bic"], rel=1e-6)
    assert found.aicc == pytest.approx(scores["aicc"], rel=1e-6)


def _misfit(found, values: np.ndarray) -> float:
    return 100 * float(np.log(np.mean(np.square(found.curve - values)) / np.max(values) ** 2))


SCORES = {
    "bic": lambda found, q, values: _misfit(found, values) + q * np.log(100),
    "aicc": lambda found, q, values: _misfit(found, values) + 2 * q + 2 * q * (q + 1) / (99 - q),
}


@pytest.mark.parametrize("law", CURVES)
def test_foresight_is_the_error_of_what_was_not_seen(law: str) -> None:
    values = noisy(law, 4)
    seen, ahead = slice(0, 67), slice(67, 100)
    params, _ = scipy.optimize.curve_fit(CURVES[law], STEPS[seen], values[seen], p0=TRUE[law][0], method="lm")
    expected = np.sqrt(np.mean((CURVES[law](STEPS[ahead], *params) - values[ahead]) ** 2))
    assert compared()(STEPS, values).fits[law].foresight == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("law", [law for law in LAWS if law != "power"])
def test_the_law_behind_noisy_values_wins(law: str) -> None:
    """Of a power law others are hard to tell at such lengths; where it is the truth it is found without noise."""
    found = [compared()(STEPS, noisy(law, seed)) for seed in range(20)]
    assert np.mean([one.chosen[law] for one in found]) >= 0.8
    assert np.median([one.weight[law] for one in found]) > 0.3
    for one in found:
        assert sum(one.weight.values()) == pytest.approx(1)
        assert sum(one.chosen.values()) == 1


@pytest.mark.parametrize("law", ["linear", "sqrt"])
def test_standard_errors_hold_for_independent_noise(law: str) -> None:
    values = np.stack([noisy(law, seed) for seed in range(200)])
    found = double(jax.vmap(functools.partial(fit, law), in_axes=(None, 0)))(STEPS, values)
    inside = np.abs(found.params - np.array(TRUE[law][0])) < 1.96 * found.error
    assert (np.abs(inside.mean(axis=0) - 0.95) < 0.05).all()


def test_intervals_hold_where_residuals_hang_together() -> None:
    """Each residual keeps 0.7 of the one before: standard errors are far too small there, blocks are better."""
    values = np.stack([noisy("linear", seed, along=0.7) for seed in range(100)])
    naive = double(jax.vmap(functools.partial(fit, "linear"), in_axes=(None, 0)))(STEPS, values)
    far = np.abs(naive.params - np.array(TRUE["linear"][0])) < 1.96 * naive.error
    assert far.mean() < 0.75
    drawn = double(jax.vmap(lambda y: bootstrap("linear", STEPS, y, KEY, repeats=100)))(values)
    inside = (drawn.low < np.array(TRUE["linear"][0])) & (np.array(TRUE["linear"][0]) < drawn.high)
    assert inside.mean() > max(0.75, far.mean() + 0.1)
    truth = TRUE["linear"][1]
    assert ((drawn.curve_low < truth) & (truth < drawn.curve_high)).mean() > 0.75


def test_layers_are_fitted_at_once_as_each_alone() -> None:
    values = np.stack([noisy("sqrt", seed) for seed in range(4)])
    together = double(jax.vmap(functools.partial(fit, "sqrt"), in_axes=(None, 0)))(STEPS, values)
    for i, row in enumerate(values):
        alone = compared()(STEPS, row).fits["sqrt"]
        for name, value in alone._asdict().items():
            np.testing.assert_allclose(getattr(together, name)[i], value, rtol=1e-6, err_msg=name)


def test_the_unit_of_values_and_steps_changes_no_verdict() -> None:
    for law, (params, values) in TRUE.items():
        small = compared()(STEPS * 1000, values * 1e-6).fits[law]
        large = compared()(STEPS, values).fits[law]
        assert small.bic == pytest.approx(float(large.bic), rel=1e-6)
        assert len(small.params) == len(params) == len(LAWS[law].names)
        np.testing.assert_allclose(small.curve, large.curve * 1e-6, rtol=1e-9)
        assert winner(compared()(STEPS * 1000, values * 1e-6)) == law


def test_random_updates_grow_by_the_root_and_aligned_ones_straight_on() -> None:
    first, count = random_matrix(rows=60, columns=50), 100
    rng = np.random.default_rng(0)
    noise = (0.4 * rng.normal(size=(count, 60, 50))).astype(np.float32)
    walk = LowRank(noise, np.broadcast_to(np.eye(50, dtype=np.float32), (count, 50, 50)))
    path = path_of_factors(first, walk)
    found = compared()(STEPS, np.asarray(path.norm))
    assert found.weight["sqrt"] + found.weight["power"] > 0.99
    assert found.fits["power"].params[2] < 0.8
    assert abs(float(alignment_share(path)[-1])) < 0.1
    along = walk._replace(left=np.broadcast_to(0.05 * first, noise.shape))
    path = path_of_factors(first, along)
    assert winner(compared()(STEPS, np.asarray(path.norm))) == "linear"
    assert alignment_share(path)[-1] > 0.9


@pytest.mark.parametrize(
    "values", [np.zeros(100), np.full(100, 3.0), np.array([0.0] * 99 + [1e30]), -(STEPS**3)]
)
def test_anything_finite_can_be_fitted(values: np.ndarray) -> None:
    found = compared()(STEPS - 1, values)
    for law, one in found.fits.items():
        assert not any(np.isnan(leaf).any() for leaf in one), law
    drawn = redrawn()(STEPS - 1, values)
    assert not any(np.isnan(leaf).any() for leaf in drawn)


def test_unknown_laws_and_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="'exponential'"):
        fit("exponent", STEPS, STEPS)
    with pytest.raises(ConfigError, match="at least 8"):
        fit("linear", STEPS[:7], STEPS[:7])
