"""Laws of the ridge with a projector, a history and a ridge on the update: one solver, many methods, in float64."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxedit.editors.alphaedit import alphaedit_config, evoedit_config
from jaxedit.editors.closed_form import Preservation, preservation, remember, solve, write
from jaxedit.editors.config import LocateConfig
from jaxedit.editors.d4s import d4s, d4s_config
from jaxedit.editors.encore import encore_config
from jaxedit.editors.locate import still_missing
from jaxedit.editors.lyaplock import lyaplock, lyaplock_config, preservation_loss
from jaxedit.editors.memit import memit_config
from jaxedit.editors.moving_null_space import (
    MovingConfig,
    anew,
    betaedit_config,
    langedit_config,
    moving_null_space,
)
from jaxedit.editors.nas import anchored
from jaxedit.editors.solver import Batch, Solver, ridge
from jaxedit.linalg import dense, null_projector
from jaxedit.values import Values
from tests.cases import relative
from tests.editors.test_closed_form import D_K, D_V, SINGLE, Problem, batches, cheap, conditions, seeds
from tests.reference import closed_forms as oracle
from tests.test_linalg import in_double

LAYERS = (0,)
EXACT = 1e-10
HALF = D_K // 2


def projector(problem: Problem) -> np.ndarray:
    return np.asarray(null_projector(in_double(problem.C0), fraction=0.5))


def exact(kept: Preservation, keys: np.ndarray, beta: float | None = 1.0) -> tuple[np.ndarray, Preservation]:
    """`M K (K^T M K + I)^-1` [d_k, n] in float64, and what is remembered: what `write` rounds to float32."""
    solved = np.asarray(solve(kept, in_double(keys)))
    left = np.linalg.solve(solved @ keys.T + np.eye(len(keys)), solved).T
    return left, remember(kept, in_double(keys), in_double(solved), beta)


def test_the_written_factor_is_the_exact_one_rounded_once() -> None:
    """Ties `write` to the float64 form in which the laws below are proved."""
    problem = Problem(0, 4)
    kept = preservation(in_double(problem.C0), 3.0, 0.5, in_double(projector(problem)))
    keys, weight = in_double(problem.keys), in_double(problem.weight)
    written = write(solve(kept, keys), keys, in_double(problem.residual), 1.0, weight)
    assert relative(written.left, exact(kept, problem.keys)[0]) <= 1e-7


@cheap
@given(seeds, conditions, st.integers(1, 6), st.sampled_from([0.1, 10.0]))
def test_alphaedit_is_the_published_unsymmetric_solve(seed: int, condition: float, n: int, l2: float) -> None:
    problem, earlier = Problem(seed, n, condition), Problem(seed + 1, 5)
    P = projector(problem)
    kept = preservation(in_double(problem.C0), 0.0, l2, in_double(P))
    _, kept = exact(kept, earlier.keys)
    left, _ = exact(kept, problem.keys)
    _, K, R = problem.torch()
    expected = oracle.alphaedit(torch.tensor(P), K, R, l2, torch.tensor(earlier.keys).T)
    assert relative((left @ problem.residual).T, expected) <= EXACT


@cheap
@given(seeds, st.integers(1, 6))
def test_preserving_within_the_null_space_is_the_unsymmetric_solve_too(seed: int, n: int) -> None:
    """BetaEdit's: C0 weighs inside P as well."""
    problem, earlier = Problem(seed, n), Problem(seed + 1, 5)
    P = projector(problem)
    _, kept = exact(preservation(in_double(problem.C0), 3.0, 0.5, in_double(P)), earlier.keys)
    left, _ = exact(kept, problem.keys)
    C0, K, R = problem.torch()
    expected = oracle.betaedit(torch.tensor(P), K, R, C0, 3.0, 0.5, torch.tensor(earlier.keys).T)
    assert relative((left @ problem.residual).T, expected) <= EXACT


@cheap
@given(seeds, st.integers(1, 6))
def test_alphaedit_that_may_write_everywhere_is_the_ridge(seed: int, n: int) -> None:
    problem = Problem(seed, n)
    everywhere = ridge(alphaedit_config(LAYERS, 3.0, fraction=1.0)).init(in_double(problem.C0), None)
    plain = preservation(in_double(np.eye(D_K)), 3.0)
    assert relative(exact(everywhere, problem.keys)[0], exact(plain, problem.keys)[0]) <= EXACT
    _, K, R = problem.torch()
    expected = oracle.memit(K, R, 3.0 * torch.eye(D_K, dtype=torch.float64))
    assert relative((exact(everywhere, problem.keys)[0] @ problem.residual).T, expected) <= EXACT


def test_encore_without_ridge_and_early_stopping_is_memit_with_history() -> None:
    assert encore_config((1, 2), 7.0, lam_n=0.0, patience=None) == memit_config((1, 2), 7.0, memory=True)


PROMISING = {
    "memit-history": memit_config(LAYERS, 3.0, memory=True),
    "encore": encore_config(LAYERS, 3.0, lam_n=0.5),
    "alphaedit": replace(alphaedit_config(LAYERS, 0.5, fraction=0.5), memory_keys="solved"),
    "history of another weight": replace(encore_config(LAYERS, 3.0, lam_n=0.5), beta=0.3),
    "without history": replace(memit_config(LAYERS, 3.0), memory=False),
}


@pytest.mark.parametrize("name", PROMISING)
@pytest.mark.parametrize("seed", range(3))
def test_with_history_sequential_updates_sum_to_the_one_time_solution(seed: int, name: str) -> None:
    """From W_0, over all edits; without history, or with one of another weight than 1, they do not."""
    config = PROMISING[name]
    problem, facts, start = batches(seed)
    solver, weights = ridge(config), start
    kept = solver.init(in_double(problem.C0), None)
    for keys, values in facts:
        left, after = exact(kept, keys, config.beta)
        weights = weights + left @ (values - keys @ weights)
        kept = after if config.memory else kept
    keys, values = (np.concatenate(x) for x in zip(*facts, strict=True))
    left, _ = exact(solver.init(in_double(problem.C0), None), keys)
    distance = relative(weights - start, left @ (values - keys @ start))
    assert distance <= EXACT if config.memory and config.beta == 1.0 else distance > 1e-2


@dataclass
class Run:
    """A sequence of batches at one matrix by a solver, in float32 as editors run it; facts want given values."""

    solver: Solver
    state: Any
    weights: jnp.ndarray

    @classmethod
    def begin(cls, solver: Solver, C0: np.ndarray, start: np.ndarray) -> "Run":
        weights = jnp.asarray(start, jnp.float32)
        return cls(solver, solver.init(jnp.asarray(C0, jnp.float32), weights), weights)

    def edit(self, keys: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """The change [d_k, d_v] of one batch."""
        keys, residual, weight = jnp.asarray(keys), jnp.asarray(residual), jnp.ones(len(keys))
        delta = dense(self.solver.write(self.state, self.weights, Batch(keys, keys, residual, weight)))
        self.weights = self.weights + delta
        self.state = self.solver.remember(self.state, self.weights, keys, weight)
        return np.asarray(delta, np.float64)


def single(facts: list[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(keys.astype(np.float32), values.astype(np.float32)) for keys, values in facts]


@pytest.mark.parametrize("seed", range(3))
def test_d4s_is_after_every_batch_the_one_time_solution_of_what_the_unedited_matrix_lacks(seed: int) -> None:
    problem, facts, start = batches(seed)
    run = Run.begin(d4s(d4s_config(LAYERS, 3.0)), problem.C0, start)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for keys, residual in single(facts):
        at_start = Batch(jnp.asarray(keys), jnp.asarray(keys), jnp.asarray(residual), jnp.ones(len(keys)))
        missing = still_missing(at_start, run.weights, run.solver.original(run.state)).residual
        run.edit(keys, missing)
        seen.append((keys, residual))
        K, R = (np.concatenate(x).astype(np.float64) for x in zip(*seen, strict=True))
        expected = np.linalg.solve(3.0 * problem.C0 + K.T @ K, K.T @ R)
        assert relative(run.weights - jnp.asarray(start, jnp.float32), expected) <= 1e-5
    assert np.array_equal(run.solver.original(run.state), start.astype(np.float32))


def test_projected_updates_leave_preserved_keys_outputs_as_they_are() -> None:
    """Keys K_0 of the corpus, a second moment of low rank: ||Delta K_0|| / (||Delta|| ||K_0||) against MEMIT's."""
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((200, HALF)) @ rng.standard_normal((HALF, D_K))
    _, facts, start = batches(1)
    found = {}
    for name, config in (
        ("memit", memit_config(LAYERS, 1.0, memory=True)),
        ("alphaedit", alphaedit_config(LAYERS, 0.5, threshold=1e-3)),
        ("evoedit", evoedit_config(LAYERS, 0.5, threshold=1e-3)),
    ):
        C0 = corpus.T @ corpus / len(corpus) + (1e-2 * np.eye(D_K) if name == "memit" else 0)
        run = Run.begin(ridge(config), C0, start)
        total = sum(run.edit(keys, values) for keys, values in single(facts[:2]))
        found[name] = np.linalg.norm(corpus @ total) / np.linalg.norm(total) / np.linalg.norm(corpus)
    assert found["alphaedit"] <= 1e-6
    assert found["evoedit"] <= 1e-6
    assert found["memit"] > 1e-3


def test_evoedit_loses_as_many_directions_as_it_writes_and_never_touches_earlier_keys() -> None:
    problem, facts, start = batches(2)
    config = evoedit_config(LAYERS, 0.25, fraction=0.75)
    run = Run.begin(ridge(config), problem.C0, start)
    rank = round(0.75 * D_K)
    earlier: list[np.ndarray] = []
    for keys, values in single(facts[:2]):
        P = np.asarray(run.state.inverse) * config.lam_n
        assert relative(P @ P, P) <= 1e-10
        assert np.trace(P) == pytest.approx(rank, abs=1e-9)
        delta = run.edit(keys, values)
        for K in earlier:
            assert np.linalg.norm(K @ delta) <= 1e-6 * np.linalg.norm(K) * np.linalg.norm(delta)
        earlier.append(keys)
        rank -= len(keys)
    again = run.edit(
        *single(facts[:1])[0]
    )  # a fact whose keys were taken out: nothing is left to write along
    assert np.linalg.norm(again) <= 1e-5 * np.linalg.norm(delta)
    assert np.trace(np.asarray(run.state.inverse)) * config.lam_n == pytest.approx(rank, abs=1e-6)


def test_alphaedit_remembers_and_evoedit_excludes_in_the_limit_of_its_weight() -> None:
    """EvoEdit is AlphaEdit with earlier keys of ever greater weight."""
    problem = Problem(0, 3)
    config = alphaedit_config(LAYERS, 0.5, fraction=0.75)
    kept = ridge(config).init(in_double(problem.C0), None)
    _, excluded = exact(kept, problem.keys, None)
    distances = []
    for beta in (1.0, 1e4, 1e8):
        _, weighed = exact(kept, problem.keys, beta)
        distances.append(relative(weighed.inverse, excluded.inverse))
    assert distances[0] > 1e-2
    assert distances[2] <= 1e-6
    assert distances == sorted(distances, reverse=True)


def rank_of(state: Any, config: LocateConfig) -> int:
    return int(np.linalg.matrix_rank(np.asarray(state.inverse), tol=1e-8))


def test_null_space_moves_with_the_edits_when_it_is_due() -> None:
    """Of a corpus weighing nothing the null space is that of the edits; before `refresh` edits it stays."""
    problem, facts, start = batches(0)
    for refresh in (1, 8, 9):
        config = betaedit_config(LAYERS, 1e-3, 0.5, fraction=0.5, refresh=refresh)
        config = replace(config, corpus=1e-6)
        run = Run.begin(moving_null_space(config), problem.C0, start)
        for batch in single(facts)[:2]:
            run.edit(*batch)
        K = np.concatenate([keys for keys, _ in facts[:2]])
        reach = np.linalg.norm(np.asarray(run.state.inverse) @ K.T) / np.linalg.norm(run.state.inverse)
        moved = refresh <= 8  # two batches of four
        assert (reach < 1e-2) == moved
        assert rank_of(run.state, config) == HALF
        assert int(run.state.edits) == 8
        assert int(run.state.refreshed) == (8 if moved else 0)


def test_betaedits_lam_weighs_the_corpus_in_the_ridge_and_in_the_null_space() -> None:
    """One number of the paper's: departing from it moves both."""
    problem, facts, _ = batches(0)
    gram = facts[0][0].T @ facts[0][0]
    config = replace(betaedit_config(LAYERS, 150.0, 0.5, fraction=0.5), lam=0.1)

    def found(config: MovingConfig) -> np.ndarray:
        return np.asarray(anew(config, in_double(problem.C0), in_double(gram), jnp.int32(4)))

    assert np.array_equal(found(config), found(replace(config, corpus=0.1)))
    assert relative(found(config), found(replace(config, corpus=150.0))) > 1e-2


def test_null_space_of_a_running_mean_counts_every_key_once() -> None:
    """LangEdit over two batches is that of the joint mean."""
    problem, facts, start = batches(0)
    config = langedit_config(LAYERS, 0.5, fraction=0.5, corpus=5.0)
    run = Run.begin(moving_null_space(config), problem.C0, start)
    for batch in single(facts)[:2]:
        run.edit(*batch)
    K = np.concatenate([keys.astype(np.float32) for keys, _ in facts[:2]]).astype(np.float64)
    mean = (5.0 * problem.C0.astype(np.float32).astype(np.float64) + K.T @ K) / (5.0 + len(K))
    P = oracle.smallest_projector(torch.tensor(mean), 0.5).numpy()
    inside = P @ (0.5 * np.eye(D_K) + K.T @ K) @ P + (np.eye(D_K) - P)
    assert relative(run.state.inverse, P @ np.linalg.inv(inside) @ P) <= 1e-8


def test_lyaplock_weighs_preservation_while_its_loss_is_above_the_bound() -> None:
    problem, facts, start = batches(0)
    queues = {}
    for allowance in (1e6, 0.1):
        config = lyaplock_config(LAYERS, 0.1, allowance)
        run, queues[allowance] = Run.begin(lyaplock(config), problem.C0, start), []
        for keys, values in single(facts):
            run.edit(keys, values - keys @ np.asarray(run.weights))
            queues[allowance].append(float(run.state.queue))
            change = np.asarray(run.weights, np.float64) - np.asarray(start, np.float32)
            loss = np.trace(change.T @ problem.C0.astype(np.float32) @ change)
            assert float(preservation_loss(run.state, run.weights)) == pytest.approx(loss, rel=1e-5)
    assert queues[1e6] == [1.0] * 5
    assert queues[0.1][0] == pytest.approx(10.0, rel=1e-5)  # the first loss is ten bounds: 1 + 10 - 1
    assert (np.diff(queues[0.1]) > 0).all()


def test_lyaplock_at_rest_is_memit_with_history_from_the_unedited_matrix() -> None:
    """While lam stays, D_t = W_t - W_0 solves D (lam C0 + K_all K_all^T) = sum (V - W_0 K) K^T, V as written."""
    problem, facts, start = batches(1)
    run = Run.begin(lyaplock(lyaplock_config(LAYERS, 2.0, allowance=1e6)), problem.C0, start)
    W_0 = np.asarray(run.weights, np.float64)
    written: list[tuple[np.ndarray, np.ndarray]] = []
    for keys, values in single(facts):
        wanted = [*written, (keys.astype(np.float64), values.astype(np.float64))]
        run.edit(keys, values - keys @ np.asarray(run.weights))
        K, V = (np.concatenate(x) for x in zip(*wanted, strict=True))
        expected = np.linalg.solve(2.0 * problem.C0 + K.T @ K, K.T @ (V - K @ W_0))
        assert relative(np.asarray(run.weights, np.float64) - W_0, expected) <= 1e-5
        written.append((K[-len(keys) :], K[-len(keys) :] @ np.asarray(run.weights, np.float64)))


def test_anchored_values_have_one_norm_and_outliers_are_left_out() -> None:
    rng = np.random.default_rng(0)
    mlp, delta, rest = (jnp.asarray(rng.standard_normal((4, D_V)), jnp.float32) for _ in range(3))
    delta = delta.at[3].multiply(100.0)
    values = Values(delta, rest + mlp, jnp.zeros((1, 4)), jnp.zeros(4, jnp.int32))
    weight = jnp.array([1.0, 1.0, 0.0, 0.0])
    target, anchor = anchored(values, mlp, jnp.float32(0), weight)
    norms = np.linalg.norm(np.asarray(mlp + delta), axis=1)
    assert float(anchor) == pytest.approx(norms[:2].mean(), rel=1e-6)
    assert np.linalg.norm(np.asarray(target - rest), axis=1)[:2] == pytest.approx(float(anchor), rel=1e-5)
    np.testing.assert_allclose(target[3], values.origin[3], rtol=1e-5, atol=1e-5)
    _, kept = anchored(values, mlp, anchor, jnp.ones(4))
    assert float(kept) == float(anchor)


@cheap
@given(seeds)
def test_padding_changes_neither_projected_updates_nor_what_is_remembered(seed: int) -> None:
    problem = Problem(seed, 3)
    padding = np.zeros((2, D_K))
    for config in (alphaedit_config(LAYERS, 0.5, fraction=0.5), evoedit_config(LAYERS, 0.5, fraction=0.5)):
        solver = ridge(config)
        kept = solver.init(in_double(problem.C0), None)
        keys = in_double(np.concatenate([problem.keys, padding]))
        residual = in_double(np.concatenate([problem.residual, np.zeros((2, D_V))]))
        weight = in_double(np.array([1.0, 1, 1, 0, 0]))
        bare = Batch(*map(in_double, (problem.keys, problem.keys, problem.residual, problem.weight)))
        padded = Batch(keys, keys, residual, weight)
        assert (
            relative(dense(solver.write(kept, None, padded)), dense(solver.write(kept, None, bare))) <= SINGLE
        )
        mine = solver.remember(kept, None, padded.keys, weight)
        assert relative(mine.inverse, solver.remember(kept, None, bare.keys, bare.weight).inverse) <= 1e-10
