"""Transforms against the oracle's in torch, float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxedit.editors.transforms import Transform, mose, null_space, rect, restrained, revive, sphere
from jaxedit.linalg import dense
from jaxedit.types import Delta, LowRank, Site, Solved
from tests.cases import relative
from tests.editors.transforms.stream import PATH, Stream
from tests.reference import transforms as oracle

PARITY = 1e-5
seeds = st.integers(0, 2**32 - 1)
cheap = settings(max_examples=5, deadline=None)


def columns(x: object) -> torch.Tensor:
    return torch.tensor(np.asarray(x, np.float64)).T


def moved(stream: Stream) -> jax.Array:
    """A matrix some updates away from the unedited one."""
    return stream.weight + stream.dense_updates[1]


def applied(transform: Transform, stream: Stream, delta: Delta) -> torch.Tensor:
    """[d_v, d_k], the state made on the unedited matrix, the update on another."""
    state = transform.init(PATH, stream.weight)
    factors = LowRank(stream.updates.left[0], stream.updates.right[0])
    solved = Solved(stream.keys[0], factors.right, factors)
    changed, _ = transform.apply(delta, state, Site(PATH, moved(stream), solved))
    return columns(dense(changed))


def assert_same(transform: Transform, stream: Stream, expected: torch.Tensor) -> None:
    """For the update as factors and as one matrix."""
    factors = LowRank(stream.updates.left[0], stream.updates.right[0])
    for delta in (factors, dense(factors)):
        assert relative(applied(transform, stream, delta), expected) <= PARITY


@cheap
@given(seeds, st.sampled_from([0.2, 0.4]))
def test_rect(seed: int, share: float) -> None:
    stream = Stream(seed)
    delta, W = columns(stream.dense_updates[0]), columns(moved(stream))
    assert_same(rect(share), stream, oracle.rect(delta, W, share))


@cheap
@given(seeds, st.sampled_from([0.3, 0.6, 0.95]))
def test_revive(seed: int, share: float) -> None:
    """By the directions of the unedited matrix, not of the present one."""
    stream = Stream(seed)
    delta = columns(stream.dense_updates[0])
    assert_same(revive(share), stream, oracle.revive(delta, columns(stream.weight), share))


@cheap
@given(seeds, st.sampled_from([(0.8, 0.5), (0.5, 0.5), (1.0, 0.9)]))
def test_sphere(seed: int, setting: tuple[float, float]) -> None:
    """By the directions of the present matrix, not of the unedited one."""
    stream = Stream(seed)
    delta = columns(stream.dense_updates[0])
    assert_same(sphere(*setting), stream, oracle.sphere(delta, columns(moved(stream)), *setting))


@cheap
@given(seeds, st.sampled_from([0.005, 0.02, 0.3]))
def test_null_space(seed: int, threshold: float) -> None:
    stream = Stream(seed)
    delta = columns(stream.dense_updates[0])
    expected = oracle.null_space(delta, columns(stream.moment), threshold)
    assert_same(null_space(stream.moments, threshold), stream, expected)


@cheap
@given(seeds, st.sampled_from([0.1, 1.0, 30.0]))
def test_mose(seed: int, lam: float) -> None:
    """The wanted values are what the keys give now plus the residuals of the solution."""
    stream = Stream(seed)
    W, K = columns(moved(stream)), columns(stream.keys[0])
    V = W @ K + columns(stream.updates.right[0])
    expected = oracle.mose(W, K, V, columns(stream.moment), lam) - W
    found = applied(mose(stream.moments, lam), stream, jnp.zeros_like(stream.weight))
    assert relative(found, expected) <= PARITY


@cheap
@given(seeds, st.sampled_from([math.e, 1.2]), st.sampled_from([0.1, 1.0, 3.0]))
def test_prune(seed: int, base: float, size: float) -> None:
    stream = Stream(seed)
    final = stream.weight + size * stream.dense_updates.sum(axis=0)
    expected = oracle.prune(columns(final), columns(stream.weight), base)
    assert relative(columns(restrained(final, stream.weight, base)), expected) <= PARITY


@pytest.mark.parametrize("size", [0.1, 3.0])
def test_prune_cases_lie_on_both_sides_of_the_limit(size: float) -> None:
    stream = Stream(0)
    total = np.linalg.norm(np.asarray(size * stream.dense_updates.sum(axis=0)), 2)
    assert (total > np.linalg.norm(np.asarray(stream.weight), 2)) == (size == 3.0)
