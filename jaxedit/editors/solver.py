"""What a locate-and-edit method does at one matrix: how it writes residuals at keys, and what it remembers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxedit.editors.closed_form import Preservation, preservation, remember, solve, write
from jaxedit.editors.config import LocateConfig
from jaxedit.errors import ConfigError
from jaxedit.linalg import null_projector
from jaxedit.types import LowRank


class Batch(NamedTuple):
    """B facts at one matrix; rows of weight 0 are padding, and zero."""

    keys: Float[Array, "B d_k"]
    query: Float[Array, "B d_k"]  # where the residual is posed; the keys themselves but for ROME
    residual: Float[Array, "B d_v"]
    weight: Float[Array, "B"]


class Solver(NamedTuple):
    """A closed form as pure functions of one matrix `W [d_k, d_v]`; its state S never shares W's memory.

    `init(C0, W)` makes the state. `write(S, W, batch)` gives the change of W. `remember(S, W, keys, weight)`
    gives the state after a batch was written everywhere, W being the matrix by then; it is called for
    methods with memory alone. `original(S)` is the matrix before the sequence, for methods that read keys
    and values from the unedited model.
    """

    init: Callable[[Float[Array, "d_k d_k"], Float[Array, "d_k d_v"]], Any]
    write: Callable[[Any, Float[Array, "d_k d_v"], Batch], LowRank | Float[Array, "d_k d_v"]]
    remember: Callable[[Any, Float[Array, "d_k d_v"], Float[Array, "B d_k"], Float[Array, "B"]], Any]
    original: Callable[[Any], Float[Array, "d_k d_v"]] | None = None


def ridge(config: LocateConfig) -> Solver:
    """The solver of `closed_form` with a fixed projector: ROME to MEMIT, AlphaEdit, ENCORE, EvoEdit."""

    def init(second_moment: Array, weights: Array) -> Preservation:
        projector = null_space(second_moment, config) if config.projected else None
        return preservation(second_moment, config.lam, config.lam_n, projector)

    def remembered(kept: Preservation, weights: Array, keys: Array, weight: Array) -> Preservation:
        return remember(kept, keys, solve(kept, keys), config.beta)

    return Solver(init, lambda kept, weights, batch: write_ridge(kept, batch, config), remembered)


def null_space(moment: Float[Array, "d_k d_k"], config: LocateConfig) -> Float[Array, "d_k d_k"]:
    """The projector P of the configuration. Raises ConfigError where it leaves nothing to write along."""
    projector = null_projector(moment, config.null_threshold, config.null_fraction)
    if not isinstance(projector, jax.core.Tracer) and not np.any(projector):
        raise ConfigError(
            f"no direction is left to write along: no eigenvalue of the keys' second moment is below "
            f"null_threshold={config.null_threshold}, or null_fraction={config.null_fraction} of its "
            f"{len(moment)} eigenvectors is none. Raise it."
        )
    return projector


def write_ridge(kept: Preservation, batch: Batch, config: LocateConfig) -> LowRank:
    """The batch's update, with the ridge for the number of facts that are in it."""
    softness: float | Array = config.ridge
    if config.single_ridge not in (None, config.ridge):
        softness = jnp.where(batch.weight.sum() > 1, config.ridge, config.single_ridge)
    return write(solve(kept, batch.keys), batch.query, batch.residual, softness, batch.weight)
