"""The updates of section "closed forms", dense, float64, one equation a function.

Columns: W [d_v, d_k], keys K [d_k, n], residuals R [d_v, n], second moment C0 [d_k, d_k].
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import eigh, inv, solve


def preservation(C0: Tensor, lam: float, lam_n: float = 0.0, K_p: Tensor | None = None) -> Tensor:
    """A = lam C0 + lam_n I + K_p K_p^T."""
    A = lam * C0.double() + lam_n * torch.eye(len(C0), dtype=torch.float64, device=C0.device)
    return A if K_p is None else A + K_p.double() @ K_p.double().T


def rome(C0: Tensor, kbar: Tensor, k: Tensor, residual: Tensor) -> Tensor:
    """Lambda u^T with u = C0^-1 kbar / ||C0^-1 kbar|| and Lambda = residual / (k . u)."""
    u = solve(C0.double(), kbar.double())
    u = u / u.norm()
    return torch.outer(residual.double() / (k.double() @ u), u)


def r_rome(C0: Tensor, kbar: Tensor, residual: Tensor) -> Tensor:
    """ROME with kbar everywhere: residual kbar^T C0^-1 / (kbar^T C0^-1 kbar)."""
    return rome(C0, kbar, kbar, residual)


def emmet(K: Tensor, R: Tensor, A: Tensor, eps: float) -> Tensor:
    """R (K^T A^-1 K + eps I)^-1 K^T A^-1."""
    K, R, A_inv = K.double(), R.double(), inv(A.double())
    gram = K.T @ A_inv @ K + eps * torch.eye(K.shape[1], dtype=torch.float64, device=K.device)
    return R @ inv(gram) @ K.T @ A_inv


def memit(K: Tensor, R: Tensor, A: Tensor) -> Tensor:
    """R K^T (A + K K^T)^-1, the minimiser of tr(D A D^T) + ||D K - R||^2."""
    K, R, A = K.double(), R.double(), A.double()
    return solve(A + K @ K.T, K @ R.T).T


def memit_sequence(
    W: Tensor, batches: Sequence[tuple[Tensor, Tensor]], A: Tensor, remember: bool = True
) -> list[Tensor]:
    """The updates of a sequence of batches (K, V): at batch t, R = V - W_t K.

    With `remember` the keys of all earlier batches are preserved, A + K_p K_p^T; then the updates add up to
    `memit` of all batches at once.
    """
    W, A, deltas = W.double(), A.double(), []
    for K, V in batches:
        deltas.append(memit(K, V.double() - W @ K.double(), A))
        W = W + deltas[-1]
        if remember:
            A = A + K.double() @ K.double().T
    return deltas


def null_projector(C0: Tensor, threshold: float) -> Tensor:
    """P on the eigenvectors of C0 with eigenvalue below the threshold."""
    eigenvalues, vectors = eigh(C0.double())
    small = vectors[:, eigenvalues < threshold]
    return small @ small.T


def alphaedit(P: Tensor, K: Tensor, R: Tensor, l2: float, K_p: Tensor | None = None) -> Tensor:
    """Solve (P (K K^T + K_p K_p^T) + l2 I) X = P K R^T; the update is X^T."""
    P, K, R = P.double(), K.double(), R.double()
    G = K @ K.T if K_p is None else K @ K.T + K_p.double() @ K_p.double().T
    return solve(P @ G + l2 * torch.eye(len(P), dtype=torch.float64, device=P.device), P @ K @ R.T).T


def smallest_projector(C0: Tensor, fraction: float) -> Tensor:
    """P on the share of C0's eigenvectors with the smallest eigenvalues."""
    _, vectors = eigh(C0.double())
    small = vectors[:, : round(fraction * len(C0))]
    return small @ small.T


def betaedit(
    P: Tensor, K: Tensor, R: Tensor, C0: Tensor, lam: float, l2: float, K_p: Tensor | None = None
) -> Tensor:
    """Solve (P (K K^T + K_p K_p^T + lam C0) + l2 I) X = P K R^T; the update is X^T."""
    P, K, R = P.double(), K.double(), R.double()
    G = K @ K.T + lam * C0.double()
    G = G if K_p is None else G + K_p.double() @ K_p.double().T
    return solve(P @ G + l2 * torch.eye(len(P), dtype=torch.float64, device=P.device), P @ K @ R.T).T


def without(P: Tensor, K: Tensor) -> Tensor:
    """EvoEdit: P - Q Q^T, Q the left singular vectors of P K."""
    left, values, _ = torch.linalg.svd(P.double() @ K.double(), full_matrices=False)
    Q = left[:, values > 1e-6 * float(K.double().norm(dim=0).max())]
    return P.double() - Q @ Q.T


def lyaplock(
    W: Tensor,
    W_0: Tensor,
    K: Tensor,
    R: Tensor,
    C0: Tensor,
    lam: float,
    earlier: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """With W' = W + D, the argmin over D of
    ||W' K - (W K + R)||^2 + sum ||W' K_p - V_p||^2 + lam tr((W' - W_0) C0 (W' - W_0)^T)."""
    W, C0 = W.double(), lam * C0.double()
    left, A = (W @ K.double() + R.double()) @ K.double().T + W_0.double() @ C0, K.double() @ K.double().T + C0
    for K_p, V_p in earlier:
        left, A = left + V_p.double() @ K_p.double().T, A + K_p.double() @ K_p.double().T
    return solve(A, left.T).T - W
