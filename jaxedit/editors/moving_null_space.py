"""AlphaEdit with a null space that moves: BetaEdit (arXiv 2605.09285) and LangEdit (arXiv 2506.10800)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxedit.editors.closed_form import Preservation, solve
from jaxedit.editors.config import LocateConfig
from jaxedit.editors.solver import Batch, Solver, null_space, write_ridge
from jaxedit.linalg import double, restricted_inverse, woodbury
from jaxedit.types import LowRank


@dataclass(frozen=True)
class MovingConfig(LocateConfig):
    """The null space is that of a mean of C0 and of the second moment of earlier edits' keys."""

    refresh: int = 1  # edits after which it is taken anew; that costs O(d_k^3), all else O(d_k^2 n)
    corpus: float | None = None  # weight of C0 in the mean; None: `lam`, its weight in the ridge
    edits: Literal["one", "count"] = "count"  # weight of the keys: 1, or how many there are


class Moving(NamedTuple):
    """What one matrix's null space is made of, and the solver's M within it."""

    inverse: Float[Array, "d_k d_k"]  # float64
    moment: Float[Array, "d_k d_k"]  # C0
    gram: Float[Array, "d_k d_k"]  # K_p K_p^T, float64
    edits: Int[Array, ""]  # how many keys are in it
    refreshed: Int[Array, ""]  # how many were when the null space was taken


def betaedit_config(
    layers: Iterable[int],
    lam: float = 3000.0,
    lam_n: float = 10.0,
    threshold: float | None = None,
    fraction: float | None = None,
    refresh: int = 1000,
) -> MovingConfig:
    """BetaEdit: C0 also weighs within its null space (`lam`), which moves every `refresh` edits.

    The null space is that of `(K_p K_p^T / N + lam C0) / (1 + lam)`. The paper's stop, once ||Delta|| / sqrt(n) is
    above 20, is not part of it: how large an update may be is left to the guard's limits (`Limits.edit`).
    """
    return MovingConfig(
        layers=tuple(layers),
        lam=lam,
        lam_n=lam_n,
        null_threshold=threshold,
        null_fraction=fraction,
        memory=True,
        refresh=refresh,
        edits="one",
    )


def langedit_config(
    layers: Iterable[int],
    lam_n: float = 10.0,
    threshold: float | None = None,
    fraction: float | None = None,
    corpus: float = 100_000.0,
) -> MovingConfig:
    """LangEdit: AlphaEdit with the null space of the running mean `(N_0 C0 + K_p K_p^T) / (N_0 + N)`.

    `corpus` is N_0, what C0 counts for. The paper's release adds the keys of all earlier batches again
    with every batch; here each counts once.
    """
    return MovingConfig(
        layers=tuple(layers),
        lam=0.0,
        lam_n=lam_n,
        null_threshold=threshold,
        null_fraction=fraction,
        memory=True,
        memory_keys="recomputed",
        corpus=corpus,
    )


def moving_null_space(config: MovingConfig) -> Solver:
    """The ridge of `closed_form` within the null space as it stands."""

    def init(second_moment: Array, weights: Array) -> Moving:
        with jax.enable_x64(True):
            none = jnp.zeros((), jnp.int32)
            gram = jnp.zeros(second_moment.shape, jnp.float64)
            moment = jnp.copy(second_moment)
            return Moving(anew(config, moment, gram, none), moment, gram, none, none)

    def write(state: Moving, weights: Array, batch: Batch) -> LowRank:
        return write_ridge(Preservation(state.inverse), batch, config)

    def remember(state: Moving, weights: Array, keys: Array, weight: Array) -> Moving:
        with jax.enable_x64(True):
            exact = double(keys)
            gram = state.gram + jnp.matmul(exact.T, exact, precision="highest")
            count = state.edits + weight.sum().astype(jnp.int32)
            due = count - state.refreshed >= config.refresh
            inverse = jax.lax.cond(
                due,
                lambda: anew(config, state.moment, gram, count),
                lambda: woodbury(state.inverse, exact.T, solve(Preservation(state.inverse), exact).T),
            )
            return Moving(inverse, state.moment, gram, count, jnp.where(due, count, state.refreshed))

    return Solver(init, write, remember)


def anew(
    config: MovingConfig,
    moment: Float[Array, "d_k d_k"],
    gram: Float[Array, "d_k d_k"],
    count: Int[Array, ""],
) -> Float[Array, "d_k d_k"]:
    """M of the null space of all that is to be preserved by now."""
    with jax.enable_x64(True):
        moment, number = double(moment), double(jnp.maximum(count, 1))
        edits = jnp.where(count > 0, number if config.edits == "count" else 1.0, 0.0)
        corpus = config.lam if config.corpus is None else config.corpus
        mean = (corpus * moment + edits * gram / number) / (corpus + edits)
        projector = null_space(mean, config)
        ridge = config.lam_n * jnp.eye(moment.shape[0], dtype=jnp.float64)
        return restricted_inverse(config.lam * moment + ridge + gram, projector)
