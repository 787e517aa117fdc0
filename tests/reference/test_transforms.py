"""Each reference transform has the property that defines it."""

import math

import pytest
import torch

from . import closed_forms, transforms
from .test_closed_forms import Problem, assert_close


@pytest.fixture(params=range(3))
def problem(request) -> Problem:
    return Problem(request.param)


def test_rect_keeps_the_largest_relative_changes(problem: Problem) -> None:
    delta = closed_forms.memit(problem.K, problem.R, problem.C0)
    kept = transforms.rect(delta, problem.W, 0.25)
    chosen = kept != 0
    assert int(chosen.sum()) == round(0.25 * delta.numel())
    assert torch.equal(kept[chosen], delta[chosen])
    ratio = (delta / problem.W).abs()
    assert ratio[chosen].min() >= ratio[~chosen].max()


@pytest.mark.parametrize("base", [math.e, 1.2])
def test_prune_restrains_only_what_exceeds(problem: Problem, base: float) -> None:
    limit = float(torch.linalg.matrix_norm(problem.W, ord=2))
    U, s, Vt = torch.linalg.svd(torch.randn_like(problem.W), full_matrices=False)
    small = U @ torch.diag(limit * s / s[0]) @ Vt
    assert_close(transforms.prune(problem.W + small, problem.W, base), problem.W + small)
    s = s / s[0] * 5 * limit
    change = transforms.prune(problem.W + U @ torch.diag(s) @ Vt, problem.W, base) - problem.W
    expected = [math.log(x / limit) / math.log(base) + limit if x > limit else float(x) for x in s]
    assert_close(
        torch.linalg.svdvals(change), torch.tensor(sorted(expected, reverse=True), dtype=torch.float64)
    )


def test_revive_leaves_the_dominant_directions_and_all_of_the_null_space(problem: Problem) -> None:
    delta = closed_forms.memit(problem.K, problem.R, problem.C0)
    U, s, Vt = torch.linalg.svd(problem.W, full_matrices=True)
    k = transforms.fewest([float(x) ** 2 for x in s], 0.6)
    assert 0 < k < len(s)
    kept = transforms.revive(delta, problem.W, 0.6)
    assert (U[:, :k].T @ kept).abs().max() < 1e-12
    assert (kept @ Vt[:k].T).abs().max() < 1e-12
    assert_close(U[:, k:].T @ kept @ Vt[k:].T, U[:, k:].T @ delta @ Vt[k:].T)


def test_sphere_damps_principal_directions_by_its_strength(problem: Problem) -> None:
    delta = closed_forms.memit(problem.K, problem.R, problem.C0)
    rows = problem.W / problem.W.norm(dim=1, keepdim=True)
    top = torch.linalg.eigh(rows.T @ rows)[1][:, -1]
    assert_close(transforms.sphere(delta, problem.W, 0.8, 0.5) @ top, 0.2 * delta @ top)
    assert (transforms.sphere(delta, problem.W, 1.0, 1.0) @ rows.T).abs().max() < 1e-12 * delta.norm()


def test_mose_is_a_rotation_and_no_other_is_better(problem: Problem) -> None:
    p, lam = problem, 0.3
    V = p.W @ p.K + p.R
    W = transforms.mose(p.W, p.K, V, p.C0, lam)
    assert_close(torch.linalg.svdvals(W), torch.linalg.svdvals(p.W))
    V = V / V.norm(dim=0) * (p.W @ p.K).norm(dim=0)

    def loss(W: torch.Tensor) -> float:
        moved = W - p.W
        return float(lam * (moved @ p.C0 * moved).sum() + ((W @ p.K - V) ** 2).sum())

    assert loss(W) < loss(p.W)
    for seed in range(20):
        draw = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        turn = torch.linalg.matrix_exp(1e-2 * (draw - draw.T))
        assert loss(W) < loss(turn @ W)


def test_compensation_keeps_the_one_time_solution_under_a_transform(problem: Problem) -> None:
    A = closed_forms.preservation(problem.C0, lam=3.0)
    result = transforms.compensated_sequence(
        problem.W, problem.batches, A, lambda D, W: transforms.rect(D, W, 0.4)
    )
    for t, (W, S) in enumerate(result, start=1):
        K, V = (torch.cat(parts, dim=1) for parts in zip(*problem.batches[:t], strict=True))
        assert_close(S - problem.W, closed_forms.memit(K, V - problem.W @ K, A))
        assert (W - S).norm() > 0.05 * (S - problem.W).norm()
