"""The solver on given keys and residuals, against the oracle's equations and against its own laws, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxedit.editors.closed_form import Preservation, preservation, remember, solve, write
from jaxedit.types import LowRank
from tests.cases import relative, same_bits
from tests.reference import closed_forms as oracle
from tests.test_linalg import in_double, spd

D_K, D_V = 16, 6
SINGLE = 2e-7  # the factors of an update are float32

seeds = st.integers(0, 2**32 - 1)
conditions = st.sampled_from([1e0, 1e3, 1e6])
cheap = settings(max_examples=12, deadline=None)


class Problem:
    """C0 of a given condition, n keys and residuals, rows."""

    def __init__(self, seed: int, n: int, condition: float = 1e2) -> None:
        rng = np.random.default_rng(seed)
        self.C0 = spd(rng, D_K, condition)
        self.keys, self.query = rng.standard_normal((2, n, D_K))
        self.residual = rng.standard_normal((n, D_V)).astype(np.float32).astype(np.float64)
        self.weight = np.ones(n)

    def kept(self, lam: float, lam_n: float = 0.0) -> Preservation:
        return preservation(in_double(self.C0), lam, lam_n)

    def delta(self, kept: Preservation, ridge: float, query: np.ndarray | None = None) -> np.ndarray:
        """[d_v, d_k] in float64, as the oracle writes it."""
        solved = solve(kept, in_double(self.keys))
        query = self.keys if query is None else query
        return columns(
            write(solved, in_double(query), in_double(self.residual), ridge, in_double(self.weight))
        )

    def torch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """C0, K [d_k, n], R [d_v, n]."""
        return torch.tensor(self.C0), torch.tensor(self.keys).T, torch.tensor(self.residual).T


def columns(delta: LowRank) -> np.ndarray:
    left, right = (np.asarray(x, np.float64) for x in delta)
    return (left @ right).T


@cheap
@given(seeds, conditions)
def test_rome_and_r_rome_are_the_oracles(seed: int, condition: float) -> None:
    problem = Problem(seed, 1, condition)
    C0, K, R = problem.torch()
    direction = np.linalg.solve(problem.C0, problem.keys[0])
    cosine = problem.query[0] @ direction / np.linalg.norm(problem.query[0]) / np.linalg.norm(direction)
    assume(abs(cosine) > 1e-2)  # where the bare key is orthogonal to the direction no edit exists
    for lam in (1.0, 30.0):
        rome = problem.delta(problem.kept(lam), 0.0, problem.query)
        assert relative(rome, oracle.rome(C0, K[:, 0], torch.tensor(problem.query[0]), R[:, 0])) <= SINGLE
        assert relative(problem.delta(problem.kept(lam), 0.0), oracle.r_rome(C0, K[:, 0], R[:, 0])) <= SINGLE


@cheap
@given(seeds, conditions, st.integers(1, 6), st.sampled_from([0.0, 0.5]))
def test_memit_and_emmet_are_the_oracles(seed: int, condition: float, n: int, lam_n: float) -> None:
    problem = Problem(seed, n, condition)
    C0, K, R = problem.torch()
    kept, A = problem.kept(3.0, lam_n), oracle.preservation(C0, 3.0, lam_n)
    assert relative(problem.delta(kept, 1.0), oracle.memit(K, R, A)) <= SINGLE
    assert relative(problem.delta(kept, 0.1), oracle.emmet(K, R, A, 0.1)) <= SINGLE


@cheap
@given(seeds, conditions)
def test_memory_is_that_of_the_oracle(seed: int, condition: float) -> None:
    earlier, problem = Problem(seed, 4, condition), Problem(seed + 1, 3, condition)
    problem.C0 = earlier.C0
    C0, K, R = problem.torch()
    kept = earlier.kept(2.0)
    kept = remember(kept, in_double(earlier.keys), solve(kept, in_double(earlier.keys)))
    A = oracle.preservation(C0, 2.0, K_p=torch.tensor(earlier.keys).T)
    assert relative(problem.delta(kept, 1.0), oracle.memit(K, R, A)) <= SINGLE


@cheap
@given(seeds, st.integers(2, 6), st.sampled_from([0.1, 4.0]))
def test_emmet_is_memit_with_its_ridge_moved_to_the_second_moment(seed: int, n: int, eps: float) -> None:
    """EMMET(lam, eps) = MEMIT(lam * eps)."""
    problem = Problem(seed, n)
    emmet, memit = problem.delta(problem.kept(3.0), eps), problem.delta(problem.kept(3.0 * eps), 1.0)
    assert relative(emmet, memit) <= SINGLE


@cheap
@given(seeds, st.integers(1, 6), st.sampled_from([1e-3, 1e3]))
def test_without_ridge_constraints_hold_and_the_scale_of_the_moment_does_not_matter(
    seed: int, n: int, lam: float
) -> None:
    problem = Problem(seed, n)
    delta = problem.delta(problem.kept(lam), 0.0)
    assert relative(problem.keys @ delta.T, problem.residual) <= 1e-5
    assert relative(delta, problem.delta(problem.kept(1.0), 0.0)) <= 1e-5


@cheap
@given(seeds, st.integers(1, 4))
def test_a_batch_of_rome_holds_every_constraint_at_its_bare_key(seed: int, n: int) -> None:
    """Delta q_j = r_j although Delta lies in the span of the mean keys: K^T A^-1 Q, not its transpose."""
    problem = Problem(seed, n)
    gram = problem.keys @ np.linalg.solve(problem.C0, problem.query.T)
    assume(np.linalg.cond(gram) < 1e3)
    delta = problem.delta(problem.kept(1.0), 0.0, problem.query)
    assert relative(problem.query @ delta.T, problem.residual) <= 1e-4


@cheap
@given(seeds, conditions, st.sampled_from([0.0, 1e-7]), st.booleans())
def test_facts_at_one_key_get_the_mean_of_their_residuals(
    seed: int, condition: float, apart: float, bare: bool
) -> None:
    """Beside another fact and padding, keys equal or as near as rounding has them; the rest as if there were one."""
    problem, merged = Problem(seed, 4, condition), Problem(seed, 2, condition)
    rng, query = np.random.default_rng(seed), problem.query if bare else problem.keys
    for rows in (problem.keys, query):
        rows[1] = rows[0] * (1 + apart * rng.standard_normal(D_K))
        rows[3] = 0
    problem.weight, problem.residual[3] = np.array([1.0, 1.0, 1.0, 0.0]), 0
    merged.keys, query_of_two = problem.keys[[0, 2]], query[[0, 2]]
    gram = merged.keys @ np.linalg.solve(merged.C0, query_of_two.T)
    assume(np.linalg.cond(gram) < 1e3)

    agreeing, conflicting = problem.residual[[0, 0, 2, 3]], problem.residual
    for wanted in (agreeing, conflicting):
        problem.residual = wanted
        merged.residual = np.stack([wanted[:2].mean(axis=0), wanted[2]])
        delta = problem.delta(problem.kept(1.0), 0.0, query)
        assert relative(query_of_two @ delta.T, merged.residual) <= 1e-4
        expected = merged.delta(merged.kept(1.0), 0.0, query_of_two)
        assert relative(delta, expected) <= (1e-2 if apart else 1e-5)


def test_what_is_done_for_repeated_keys_changes_no_bit_for_keys_that_differ() -> None:
    """By 1e-3 is enough. A ridge that is an array, if zero, is solved as it stands."""
    problem = Problem(0, 5)
    problem.keys[1] = problem.keys[0] * (1 + 1e-3 * np.random.default_rng(1).standard_normal(D_K))
    solved, keys = solve(problem.kept(1.0), in_double(problem.keys)), in_double(problem.keys)
    residual, weight, zero = (in_double(x) for x in (problem.residual, problem.weight, np.zeros(())))
    assert same_bits(write(solved, keys, residual, 0.0, weight), write(solved, keys, residual, zero, weight))


def exact_memit(kept: Preservation, keys: jax.Array) -> tuple[np.ndarray, Preservation]:
    """`(A + K K^T)^-1 K` in float64 by `remember` and `solve` alone, and what is remembered after it."""
    after = remember(kept, keys, solve(kept, keys))
    return np.asarray(solve(after, keys)).T, after


def batches(seed: int) -> tuple[Problem, list[Any], np.ndarray]:
    """Five batches of four facts: keys, wanted values; and the weights [d_k, d_v] before all."""
    rng = np.random.default_rng(seed)
    facts = [(rng.standard_normal((4, D_K)), rng.standard_normal((4, D_V))) for _ in range(5)]
    return Problem(seed, 1), facts, rng.standard_normal((D_K, D_V))


@pytest.mark.parametrize("seed", range(3))
def test_five_batches_with_memory_are_one_joint_batch(seed: int) -> None:
    problem, facts, start = batches(seed)
    weights, kept = start, problem.kept(3.0)
    for keys, values in facts:
        left, kept = exact_memit(kept, in_double(keys))
        weights = weights + left @ (values - keys @ weights)
    keys, values = (np.concatenate(x) for x in zip(*facts, strict=True))
    left, _ = exact_memit(problem.kept(3.0), in_double(keys))
    assert relative(weights - start, left @ (values - keys @ start)) <= 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_five_batches_without_memory_are_another_update(seed: int) -> None:
    problem, facts, start = batches(seed)
    weights = start
    for keys, values in facts:
        left, _ = exact_memit(problem.kept(3.0), in_double(keys))
        weights = weights + left @ (values - keys @ weights)
    keys, values = (np.concatenate(x) for x in zip(*facts, strict=True))
    left, _ = exact_memit(problem.kept(3.0), in_double(keys))
    assert relative(weights - start, left @ (values - keys @ start)) > 0.1


def test_the_written_factor_is_the_exact_one_rounded_once() -> None:
    """Ties `write` at ridge 1 to the float64 form in which the law of sequences is proved."""
    problem = Problem(0, 4)
    kept, keys = problem.kept(3.0), in_double(problem.keys)
    left, _ = exact_memit(kept, keys)
    written = write(solve(kept, keys), keys, in_double(problem.residual), 1.0, in_double(problem.weight))
    assert written.left.dtype == written.right.dtype == jnp.float32
    assert relative(written.left, left) <= 1e-7


def test_remembered_inverse_stays_exact_over_many_batches() -> None:
    problem, rng = Problem(0, 1, 1e6), np.random.default_rng(1)
    kept, exact = problem.kept(3.0), 3.0 * problem.C0
    for _ in range(50):
        keys = rng.standard_normal((2, D_K))
        kept, exact = remember(kept, in_double(keys), solve(kept, in_double(keys))), exact + keys.T @ keys
    assert kept.inverse.dtype == jnp.float64
    assert relative(kept.inverse, np.linalg.inv(exact)) <= 1e-8


@cheap
@given(seeds, st.sampled_from([0.0, 0.1, 1.0]))
def test_padding_rows_contribute_nothing(seed: int, ridge: float) -> None:
    problem, padded = Problem(seed, 3), Problem(seed, 3)
    for name in ("keys", "residual", "weight"):
        value = getattr(problem, name)
        setattr(padded, name, np.concatenate([value, np.zeros((2, *value.shape[1:]))]))
    assert relative(padded.delta(padded.kept(2.0), ridge), problem.delta(problem.kept(2.0), ridge)) <= SINGLE


def test_permuting_facts_leaves_the_update_as_it_is() -> None:
    problem, permuted = Problem(0, 5), Problem(0, 5)
    order = np.array([3, 1, 4, 0, 2])
    permuted.keys, permuted.residual = problem.keys[order], problem.residual[order]
    assert relative(permuted.delta(permuted.kept(2.0), 1.0), problem.delta(problem.kept(2.0), 1.0)) <= SINGLE
