"""NAS, norm-anchor scaling of values (Liu et al. 2026, arXiv 2602.02543)."""

from collections.abc import Iterable
from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.alphaedit import alphaedit_config
from jaxedit.editors.config import LocateConfig
from jaxedit.linalg import safe_norm
from jaxedit.values import Values


def nas_config(
    layers: Iterable[int],
    lam_n: float = 10.0,
    threshold: float | None = None,
    fraction: float | None = None,
    anchor: float = 0.0,
) -> LocateConfig:
    """AlphaEdit with every value at one norm: values and weights can no longer enlarge each other in turn.

    `anchor` is the mean norm of values on the unedited model; with 0 it is measured on the first batch.
    """
    return replace(alphaedit_config(layers, lam_n, threshold, fraction), anchor=anchor)


def anchored(
    values: Values, mlp: Float[Array, "B d_model"], anchor: Float[Array, ""], weight: Float[Array, "B"]
) -> tuple[Float[Array, "B d_model"], Float[Array, ""]]:
    """The targets with `v* = v + delta` rescaled to the anchor's norm, and the anchor.

    `mlp` is v, the MLP's own output, the part of the target that a weight can change. A fact whose v* is
    more than twice the anchor is left as it is. An anchor of 0 is set to this batch's mean.
    """
    wanted = mlp + values.delta
    norm = safe_norm(wanted)
    mean = jnp.sum(norm * weight) / jnp.maximum(weight.sum(), 1.0)
    anchor = jnp.where(anchor > 0, anchor, mean)
    scale = anchor / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
    rescaled = jnp.where((norm > 2 * anchor)[:, None], mlp, wanted * scale[:, None])
    return values.origin - mlp + rescaled, anchor
