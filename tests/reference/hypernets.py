"""MEND, MALMEN, UltraEdit and StableEdit from tokens' factors to Delta [d_in, d_out]; float64, plain loops."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .factors import Token

EPS = 1e-7
FLAT = 1e-6
FLOOR = 1e-6


class Layer(NamedTuple):
    """One residual layer of a network, for one matrix."""

    into: Tensor  # [d, r]
    out: Tensor  # [r, d]
    bias: Tensor
    scale: Tensor
    shift: Tensor


class Spread(NamedTuple):
    """Mean and standard deviation by component."""

    mean: Tensor
    std: Tensor


def joined(token: Token) -> Tensor:
    """u and v in one vector."""
    return torch.cat([token.u, token.v])


def spread_of(tokens: Sequence[Token]) -> Spread:
    """Over all tokens, in two passes."""
    every = torch.stack([joined(token) for token in tokens])
    mean = every.sum(dim=0) / len(every)
    return Spread(mean, ((every - mean).square().sum(dim=0) / (len(every) - 1)).sqrt())


def normalised(token: Token, spread: Spread | None) -> Tensor:
    """A component that never varied is only centred; without moments nothing changes."""
    x = joined(token)
    if spread is None:
        return x
    return torch.stack(
        [
            (a - m) / (s + EPS) if s > FLAT * m.abs() else a - m
            for a, m, s in zip(x, spread.mean, spread.std, strict=True)
        ]
    )


def pseudo(network: Sequence[Layer], spread: Spread | None, token: Token, malmens: bool = False) -> Token:
    """(u~, v~); MALMEN's blocks rectify before they scale and shift, MEND's after."""
    x = normalised(token, spread)
    for layer in network:
        mapped = layer.out.T @ (layer.into.T @ x) + layer.bias
        if malmens:
            mapped = layer.scale * mapped.clamp(min=0) + layer.shift
        else:
            mapped = (layer.scale * mapped + layer.shift).clamp(min=0)
        x = mapped + x
    return Token(x[: len(token.u)], x[len(token.u) :])


def mend(network: Sequence[Layer], spread: Spread | None, rate: float, tokens: Sequence[Token]) -> Tensor:
    """-rate sum_t u~_t v~_t^T."""
    delta = torch.zeros(len(tokens[0].u), len(tokens[0].v), dtype=torch.float64)
    for token in tokens:
        new = pseudo(network, spread, token)
        delta -= rate * torch.outer(new.u, new.v)
    return delta


def regression(tokens: Sequence[Token], wanted: Sequence[Tensor], ridge: float) -> Tensor:
    """argmin ||K^T Delta - D||^2 + ridge ||Delta||^2, by the normal equation."""
    width, height = len(tokens[0].u), len(tokens[0].v)
    left = ridge * torch.eye(width, dtype=torch.float64)
    right = torch.zeros(width, height, dtype=torch.float64)
    for token, change in zip(tokens, wanted, strict=True):
        left += torch.outer(token.u, token.u)
        right += torch.outer(token.u, change)
    return torch.linalg.solve(left, right)


def malmen(
    network: Sequence[Layer], spread: Spread | None, rate: float, log_ridge: float, tokens: Sequence[Token]
) -> Tensor:
    """d_t = -rate (u_t . u~_t) v~_t, then regression with ridge e^lambda."""
    wanted = []
    for token in tokens:
        new = pseudo(network, spread, token, malmens=True)
        wanted.append(-rate * torch.dot(token.u, new.u) * new.v)
    return regression(tokens, wanted, float(torch.tensor(log_ridge, dtype=torch.float64).exp()))


def ultraedit(
    tokens: Sequence[Token], seen: Sequence[Token], rate: float, ridge: float, whitened: bool = False
) -> Tensor:
    """d_t = -rate ||u~_t||^2 v~_t; `seen` are the tokens so far of all matrices of this shape, these included."""
    spread = spread_of(seen)
    root = inverse_root(seen) if whitened and len(seen) > len(tokens[0].v) + 1 else None
    wanted = []
    for token in tokens:
        x = normalised(token, spread)
        u, v = x[: len(token.u)], x[len(token.u) :]
        if root is not None:
            v = root @ (token.v - spread.mean[len(token.u) :])
        wanted.append(-rate * torch.dot(u, u) * v)
    return regression(tokens, wanted, ridge)


def inverse_root(seen: Sequence[Token]) -> Tensor:
    """Sigma^-1/2 of the gradients, eigenvalues held above a share of the largest."""
    gradients = torch.stack([token.v for token in seen])
    centred = gradients - gradients.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(seen) - 1))
    values = values.clamp(min=FLOOR * float(values.max()))
    return vectors @ torch.diag(values**-0.5) @ vectors.T
