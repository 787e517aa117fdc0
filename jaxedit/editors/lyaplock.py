"""LyapLock (Wang et al. 2025, arXiv 2505.15702)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.config import LocateConfig
from jaxedit.editors.solver import Batch, Solver
from jaxedit.linalg import double, spd_solve


@dataclass(frozen=True)
class LyapLockConfig(LocateConfig):
    """MEMIT with history under a bound on what the corpus loses."""

    allowance: float = 60.0  # bound on the preservation loss, in losses of the first batch


class LyapLock(NamedTuple):
    """What one matrix's update is solved from."""

    original: Float[Array, "d_k d_v"]  # W_0
    moment: Float[Array, "d_k d_k"]  # C0
    gram: Float[Array, "d_k d_k"]  # K_p K_p^T, float64
    cross: Float[Array, "d_k d_v"]  # K_p V_p^T, V_p the outputs right after their batch was written, float64
    queue: Float[Array, ""]  # a Z, the virtual queue times its step: what lam is multiplied with, float64
    first_loss: Float[Array, ""]  # the preservation loss after the first batch; 0 before, float64


def lyaplock_config(layers: Iterable[int], lam: float = 1000.0, allowance: float = 60.0) -> LyapLockConfig:
    """Preservation weighs more, the longer its loss has been above the bound."""
    return LyapLockConfig(layers=tuple(layers), lam=lam, memory=True, allowance=allowance)


def lyaplock(config: LyapLockConfig) -> Solver:
    """Minimises `||W K - V||^2 + ||W K_p - V_p||^2 + q lam tr((W - W_0) C0 (W - W_0)^T)` over W.

    The loss L of the last term moves the queue, `q <- max(q + L / D - 1, 1)` with D = `allowance` times
    the loss of the first batch: in the paper's terms q = a Z with a = 1 / sqrt(D). An update is dense and
    costs O(d_k^3), since lam changes with every batch.
    """

    def init(second_moment: Array, weights: Array) -> LyapLock:
        with jax.enable_x64(True):
            gram = jnp.zeros(second_moment.shape, jnp.float64)
            cross = jnp.zeros(weights.shape, jnp.float64)
            one = jnp.ones((), jnp.float64)
            solvable = jnp.isfinite(jnp.linalg.cholesky(double(second_moment))).all()
            moment = jnp.where(solvable, second_moment, jnp.nan)  # told at once, not by the first update
            return LyapLock(jnp.copy(weights), moment, gram, cross, one, jnp.zeros((), jnp.float64))

    def write(state: LyapLock, weights: Array, batch: Batch) -> Float[Array, "d_k d_v"]:
        with jax.enable_x64(True):
            keys, residual = double(batch.keys), double(batch.residual)
            now, lam = double(weights), config.lam * state.queue
            moment = lam * double(state.moment)
            wanted = jnp.matmul(keys.T, residual, precision="highest")
            drift = state.cross - jnp.matmul(state.gram, now, precision="highest")
            pull = jnp.matmul(moment, double(state.original) - now, precision="highest")
            matrix = jnp.matmul(keys.T, keys, precision="highest") + state.gram + moment
            delta = spd_solve(matrix, wanted + drift + pull)
            return (delta * (batch.weight.sum() > 0)).astype(jnp.float32)  # no facts, no edit

    def remember(state: LyapLock, weights: Array, keys: Array, weight: Array) -> LyapLock:
        with jax.enable_x64(True):
            exact, now = double(keys), double(weights)
            outputs = jnp.matmul(exact, now, precision="highest")
            loss = preservation_loss(state, weights)
            some = weight.sum() > 0
            first = jnp.where(some & (state.first_loss == 0), loss, state.first_loss)
            bound = config.allowance * jnp.where(first == 0, 1.0, first)
            queue = jnp.where(some, jnp.maximum(state.queue + loss / bound - 1, 1.0), state.queue)
            return state._replace(
                gram=state.gram + jnp.matmul(exact.T, exact, precision="highest"),
                cross=state.cross + jnp.matmul(exact.T, outputs, precision="highest"),
                queue=queue,
                first_loss=first,
            )

    return Solver(init, write, remember)


def preservation_loss(state: LyapLock, weights: Float[Array, "d_k d_v"]) -> Float[Array, ""]:
    """L = tr((W - W_0) C0 (W - W_0)^T): how far outputs on the corpus have moved, in mean square, float64."""
    with jax.enable_x64(True):
        change = double(weights) - double(state.original)
        return jnp.sum(change * jnp.matmul(double(state.moment), change, precision="highest"))
