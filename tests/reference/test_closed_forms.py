"""Each closed form has the property that defines it."""

import pytest
import torch
from torch import Tensor

from . import closed_forms as forms

D_K, D_V, N = 20, 7, 4


class Problem:
    """A random well-conditioned problem in float64."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        samples = normal(D_K, 60) * torch.linspace(0.3, 2, D_K, dtype=torch.float64)[:, None]
        self.C0 = samples @ samples.T / 60
        self.W, self.K, self.R, self.K_p = normal(D_V, D_K), normal(D_K, N), normal(D_V, N), normal(D_K, 6)
        self.k, self.kbar, self.v = normal(D_K), normal(D_K), normal(D_V)
        self.batches = [(normal(D_K, N), normal(D_V, N)) for _ in range(5)]


@pytest.fixture(params=range(3))
def problem(request) -> Problem:
    return Problem(request.param)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_rome_maps_the_key_to_the_value_along_the_whitened_mean_key(problem: Problem) -> None:
    p = problem
    delta = forms.rome(p.C0, p.kbar, p.k, p.v - p.W @ p.k)
    assert_close((p.W + delta) @ p.k, p.v)
    assert torch.linalg.matrix_rank(delta) == 1
    direction = delta[0] @ p.C0  # rows of Delta are multiples of C0^-1 kbar
    assert_close(direction / direction.norm(), p.kbar / p.kbar.norm() * torch.sign(direction @ p.kbar))


def test_r_rome_is_the_cheapest_exact_update_and_emmet_of_one_fact(problem: Problem) -> None:
    p = problem
    residual = p.v - p.W @ p.kbar
    delta = forms.r_rome(p.C0, p.kbar, residual)
    assert_close((p.W + delta) @ p.kbar, p.v)
    assert_close(delta, forms.emmet(p.kbar[:, None], residual[:, None], p.C0, eps=0.0))
    assert_close(delta, forms.emmet(p.kbar[:, None], residual[:, None], 7.0 * p.C0, eps=0.0))  # scale free

    other = forms.rome(p.C0, p.k, p.kbar, residual)  # also exact at kbar, but along another direction
    assert_close((p.W + other) @ p.kbar, p.v)
    assert (delta @ p.C0 * delta).sum() < (other @ p.C0 * other).sum()


def test_emmet_without_eps_satisfies_all_facts(problem: Problem) -> None:
    p = problem
    delta = forms.emmet(p.K, p.R, forms.preservation(p.C0, lam=3.0), eps=0.0)
    assert_close((p.W + delta) @ p.K, p.W @ p.K + p.R)


def test_emmet_with_eps_is_memit_with_scaled_preservation(problem: Problem) -> None:
    p = problem
    A = forms.preservation(p.C0, lam=3.0, lam_n=0.2, K_p=p.K_p)
    assert_close(forms.emmet(p.K, p.R, A, eps=0.1), forms.memit(p.K, p.R, 0.1 * A))


def test_memit_satisfies_its_normal_equations_and_minimises(problem: Problem) -> None:
    p = problem
    A = forms.preservation(p.C0, lam=3.0, lam_n=0.2, K_p=p.K_p)
    assert_close(A, 3.0 * p.C0 + 0.2 * torch.eye(D_K, dtype=torch.float64) + p.K_p @ p.K_p.T)
    delta = forms.memit(p.K, p.R, A)
    assert_close(delta @ A, (p.R - delta @ p.K) @ p.K.T)

    free = delta.clone().requires_grad_()
    ((free @ A * free).sum() + ((free @ p.K - p.R) ** 2).sum()).backward()
    assert free.grad.abs().max() < 1e-10


def test_five_batches_with_memory_are_one_joint_batch(problem: Problem) -> None:
    p = problem
    A = forms.preservation(p.C0, lam=3.0)
    K, V = (torch.cat(parts, dim=1) for parts in zip(*p.batches, strict=True))
    joint = forms.memit(K, V - p.W @ K, A)
    assert_close(sum(forms.memit_sequence(p.W, p.batches, A)), joint, 1e-10)
    forgetful = sum(forms.memit_sequence(p.W, p.batches, A, remember=False))
    assert (forgetful - joint).norm() > 0.05 * joint.norm()


def test_alphaedit_lives_in_the_null_space_and_is_a_symmetric_ridge(problem: Problem) -> None:
    p = problem
    threshold = float(torch.linalg.eigvalsh(p.C0).median())
    P = forms.null_projector(p.C0, threshold)
    assert_close(P @ P, P)
    assert 0 < torch.trace(P) < D_K
    delta = forms.alphaedit(P, p.K, p.R, l2=10.0, K_p=p.K_p)
    assert_close(delta @ P, delta)
    ridge = 10.0 * torch.eye(D_K, dtype=torch.float64) + P @ p.K_p @ p.K_p.T @ P
    assert_close(delta, forms.memit(P @ p.K, p.R, ridge))
