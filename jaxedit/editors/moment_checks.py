"""Refuses second moments of keys that no update can be solved with."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.errors import StatisticsError
from jaxedit.models.model import Model


def check_moments(model: Model, moments: Mapping[int, Array], layers: tuple[int, ...]) -> None:
    """Raises StatisticsError where a layer's moment is missing or of another width."""
    width = model.config.d_ff
    for layer in layers:
        if layer not in moments:
            raise StatisticsError(
                f"no second moment for layer {layer}; there are layers {sorted(moments)}. "
                f"Collect it with jaxedit.statistics.second_moments(..., layers=({layer},))."
            )
        if moments[layer].shape != (width, width):
            raise StatisticsError(
                f"the second moment of layer {layer} is {moments[layer].shape}, the model's keys have width "
                f"{width}: it belongs to another model. Collect it anew for this one."
            )


def check_invertible(state: Any, moment: Float[Array, "d_k d_k"], layer: int) -> None:
    """Raises StatisticsError where what a solver made of C0 is not finite. Under a trace it is not looked at.

    A neuron that no token of the text makes fire leaves a row of C0 zero, and fewer tokens than neurons leave it
    without full rank: then it has no inverse, and every update would be NaN.
    """
    over_keys = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == moment.shape]
    if any(isinstance(matrix, jax.core.Tracer) for matrix in over_keys):
        return
    if all(bool(jnp.isfinite(matrix).all()) for matrix in over_keys):
        return
    if not bool(jnp.isfinite(moment).all()):
        raise StatisticsError(f"the second moment of layer {layer} is not finite: collect it anew")
    silent = int(jnp.sum(jnp.diagonal(moment) == 0))
    raise StatisticsError(
        f"the second moment of layer {layer} has no inverse: {silent} of its {len(moment)} neurons never fired in "
        f"its text, and a text of fewer tokens than neurons does not tell the others apart. Collect it over more "
        f"tokens (ten times the neurons do) or over another text, or set lam_n above 0 if the editor has it."
    )
