"""D4S, a sequence as one batch (Huang et al. 2024, arXiv 2410.23843)."""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.closed_form import Preservation, preservation, remember, solve
from jaxedit.editors.config import LocateConfig
from jaxedit.editors.memit import memit_config
from jaxedit.editors.solver import Batch, Solver, write_ridge
from jaxedit.types import LowRank


class Dump(NamedTuple):
    """The unedited matrix, and M with all earlier keys."""

    inverse: Float[Array, "d_k d_k"]  # float64
    original: Float[Array, "d_k d_v"]


def d4s_config(layers: Iterable[int], lam: float) -> LocateConfig:
    """MEMIT with history whose values and keys are always those of the unedited model.

    So no edit sees another and no feedback between them can build up: the control arm for all that edit what
    they have edited. The residual is measured once, before any layer is written, and spread over all
    layers alike; the paper's release divides it by the layers left without measuring it anew, so that five
    layers write 2.28 times what is missing.
    """
    return memit_config(layers, lam, memory=True)


def d4s(config: LocateConfig) -> Solver:
    """After every batch W is the one-time solution `W_0 + (sum R K^T) (lam C0 + lam_n I + sum K K^T)^-1`.

    `write` is given what W still lacks, `R - (W - W_0) K` (`locate.still_missing`): with history that is the same
    as summing `R K^T` over the sequence, and the update stays of rank n.
    """

    def init(second_moment: Array, weights: Array) -> Dump:
        return Dump(preservation(second_moment, config.lam, config.lam_n).inverse, jnp.copy(weights))

    def write(state: Dump, weights: Array, batch: Batch) -> LowRank:
        return write_ridge(Preservation(state.inverse), batch, config)

    def remembered(state: Dump, weights: Array, keys: Array, weight: Array) -> Dump:
        kept = Preservation(state.inverse)
        return state._replace(inverse=remember(kept, keys, solve(kept, keys), config.beta).inverse)

    return Solver(init, write, remembered, lambda state: state.original)
