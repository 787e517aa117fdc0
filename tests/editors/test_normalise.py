"""Running moments against two passes over everything, and what normalisation by them gives."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.editors.normalise import empty, fold, fold_scatter, standardise, whiten
from tests.cases import relative

WIDTH = 7


def batches() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Correlated vectors far from zero in batches of 5, some rows not real; one batch has none that is."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(WIDTH, WIDTH))
    x = [rng.normal(size=(5, WIDTH)) @ mix + 30 for _ in range(8)]
    real = [rng.random(5) < 0.7 for _ in range(8)]
    real[3][:] = False
    return [rows.astype(np.float32) for rows in x], real


def folded(x: list[np.ndarray], real: list[np.ndarray]):
    running, scatter = empty(WIDTH), jax.enable_x64(True)
    with scatter:
        total = jnp.zeros((WIDTH, WIDTH), jnp.float64)
    for rows, which in zip(x, real, strict=True):
        total = fold_scatter(total, running, rows, which)
        running = fold(running, rows, which)
    return running, total


def test_running_moments_are_those_of_two_passes() -> None:
    x, real = batches()
    running, scatter = folded(x, real)
    every = np.concatenate([rows[which] for rows, which in zip(x, real, strict=True)]).astype(np.float64)
    assert int(running.total) == len(every)
    assert relative(running.mean, every.mean(axis=0)) <= 1e-6
    assert relative(running.squares, np.square(every - every.mean(axis=0)).sum(axis=0)) <= 1e-5
    assert scatter.dtype == np.float64
    assert relative(scatter, np.cov(every.T) * (len(every) - 1)) <= 1e-5


def test_standardised_vectors_have_mean_zero_and_deviation_one_whitened_ones_no_correlation() -> None:
    x, real = batches()
    running, scatter = folded(x, real)
    every = np.concatenate([rows[which] for rows, which in zip(x, real, strict=True)])
    normal = np.asarray(standardise(running, every), np.float64)
    assert np.abs(normal.mean(axis=0)).max() <= 1e-4
    assert np.abs(normal.std(axis=0, ddof=1) - 1).max() <= 1e-4
    white = np.asarray(whiten(scatter, running, every), np.float64)
    assert np.abs(np.cov(white.T) - np.eye(WIDTH)).max() <= 1e-3
    assert np.abs(np.cov(normal.T) - np.eye(WIDTH)).max() > 0.1


def test_before_two_vectors_nothing_is_normalised_and_a_constant_component_is_only_centred() -> None:
    x = np.array([[1.0, 2.0], [1.0, 4.0]], np.float32)
    one = fold(empty(2), x, np.array([True, False]))
    assert np.array_equal(standardise(one, x), x)
    both = standardise(fold(one, x, np.array([False, True])), np.array([[3.0, 3.0]], np.float32))
    assert np.array_equal(both, [[2.0, 0.0]])


def test_a_constant_of_many_batches_is_only_centred_though_its_rounding_varies() -> None:
    constant, rng, running = np.float32([0.1, -30.1, 3e-4, 7e5]), np.random.default_rng(0), empty(4)
    for _ in range(20):
        running = fold(running, np.tile(constant, (300, 1)), rng.random(300) < 0.7)
    assert (running.squares > 0).any(), "without rounding there is nothing to show"
    step = np.float32([1.0, 2.0, 3.0, 4.0])
    assert relative(standardise(running, (constant + step)[None])[0], step) <= 0.1
