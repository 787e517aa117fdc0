"""Update transforms as their papers state them, dense, float64, plain loops.

Columns: W and Delta [d_v, d_k], keys K [d_k, n], values V [d_v, n], second moment C0 [d_k, d_k].
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.linalg import eigh, inv, svd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import closed_forms, layout
from .editors import Deltas, gather, values_of
from .facts import Fact
from .values import Settings


def fewest(energies: Sequence[float], share: float) -> int:
    """How many of the descending energies it takes until their sum is `share` of the whole."""
    total, count = 0.0, 0
    while count < len(energies) and total < share * sum(energies):
        total, count = total + energies[count], count + 1
    return count


def rect(delta: Tensor, W: Tensor, share: float) -> Tensor:
    """Keep the `share` of entries whose |Delta / W| is largest."""
    ratio = (delta.double() / W.double()).abs().flatten()
    order = sorted(range(len(ratio)), key=lambda i: -float(ratio[i]))
    kept = torch.zeros_like(ratio)
    for i in order[: round(share * len(ratio))]:
        kept[i] = delta.double().flatten()[i]
    return kept.reshape(delta.shape)


def prune(W: Tensor, W_0: Tensor, base: float = math.e) -> Tensor:
    """W_0 plus the total change with every singular value above sigma_max(W_0) restrained."""
    W, W_0 = W.double(), W_0.double()
    limit = float(torch.linalg.matrix_norm(W_0, ord=2))
    U, s, Vt = svd(W - W_0, full_matrices=False)
    restrained = [math.log(x, base) - math.log(limit, base) + limit if x > limit else float(x) for x in s]
    total = W_0.clone()
    for i, value in enumerate(restrained):
        total += value * torch.outer(U[:, i], Vt[i])
    return total


def revive(delta: Tensor, W_0: Tensor, share: float) -> Tensor:
    """Expand Delta in complete singular bases of W_0; drop what touches one of the k dominant directions."""
    U, s, Vt = svd(W_0.double(), full_matrices=True)
    k = fewest([float(x) ** 2 for x in s], share)
    coefficients = U.T @ delta.double() @ Vt.T
    coefficients[:k] = 0
    coefficients[:, :k] = 0
    return U @ coefficients @ Vt


def sphere(delta: Tensor, W: Tensor, strength: float, share: float) -> Tensor:
    """Delta (I - alpha U_r U_r^T), U_r the leading eigenvectors of the Gram matrix of W's unit rows."""
    W = W.double()
    rows = torch.stack([row / row.norm() for row in W])
    eigenvalues, vectors = eigh(rows.T @ rows)
    order = list(range(len(eigenvalues) - 1, -1, -1))
    r = fewest([max(float(eigenvalues[i]), 0.0) for i in order], share)
    result = delta.double().clone()
    for i in order[:r]:
        u = vectors[:, i]
        result -= strength * torch.outer(delta.double() @ u, u)
    return result


def null_space(delta: Tensor, C0: Tensor, threshold: float) -> Tensor:
    """Delta P."""
    return delta.double() @ closed_forms.null_projector(C0, threshold)


def mose(W: Tensor, K: Tensor, V: Tensor, C0: Tensor, lam: float) -> Tensor:
    """Q W with the orthogonal Procrustes rotation, values first brought to the length of W K."""
    W, K, V, C0 = W.double(), K.double(), V.double(), C0.double()
    now = W @ K
    wanted = torch.stack([v * (o.norm() / v.norm()) for v, o in zip(V.T, now.T, strict=True)], dim=1)
    U, _, Zt = svd(lam * W @ C0 @ W.T + wanted @ now.T)
    return U @ Zt @ W


def compensated_sequence(
    W: Tensor,
    batches: Sequence[tuple[Tensor, Tensor]],
    A: Tensor,
    post: Callable[[Tensor, Tensor], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """W and the `S = W - E A^-1` after every batch: D = (R K^T - E) A^-1; W += Post(D); E = (Post(D) - D) A.

    `A` is the matrix before any batch; it gains K K^T with each. `post(D, W)` sees the W before the update.
    """
    W, A, E, result = W.double(), A.double(), torch.zeros_like(W, dtype=torch.float64), []
    for K, V in batches:
        K, V = K.double(), V.double()
        A = A + K @ K.T
        D = ((V - W @ K) @ K.T - E) @ inv(A)
        changed = post(D, W)
        W, E = W + changed, (changed - D) @ A
        result.append((W, W - E @ inv(A)))
    return result


def memit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layers: Sequence[int],
    C0: Mapping[int, Tensor],
    settings: Settings,
    lam: float,
    post: Callable[[Tensor, Tensor], Tensor],
) -> Deltas:
    """MEMIT whose update of a layer is `post(Delta, W)`, written before the next layer is solved."""
    values = values_of(model, tokenizer, facts, contexts, layers[-1], settings)
    deltas: Deltas = {}
    for number, layer in enumerate(layers):
        K, missing = gather(model, tokenizer, facts, contexts, layer, layers[-1], values)
        solved = closed_forms.memit(
            K, missing / (len(layers) - number), closed_forms.preservation(C0[layer], lam)
        )
        deltas[layer] = post(solved, layout.weight(model, layer))
        layout.add_to_weight(model, layer, deltas[layer])
    return deltas
