"""Fine-tuning of single MLP matrices: FT, and FT-L with an entrywise bound (Zhu et al. 2020, arXiv 2012.00363)."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxedit.editors.objective import FactConfig, learn_facts
from jaxedit.editors.optimiser import optimiser
from jaxedit.linalg import all_finite
from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.types import EditInfo, Editor, Params, Requests


@dataclass(frozen=True)
class FineTuneConfig(FactConfig):
    """Settings of FT; `bound` makes it FT-L."""

    layers: tuple[int, ...]
    bound: float | None = None  # entries stay within this of the centre after every step
    centre: Literal["edit", "original"] = "edit"  # the weights before this edit, or before the sequence


def fine_tune(model: Model, config: FineTuneConfig) -> Editor:
    """FT: AdamW on the down-projections of `layers`, anew for every update.

    The state is the centre of the bound where that is the unedited model, else empty. Raises ConfigError
    for a layer out of range, and as `optimiser.rate`.
    """
    paths = model.edited_paths(config.layers)
    first, transform = min(config.layers), optimiser(config)
    original = config.bound is not None and config.centre == "original"

    def init(params: Params) -> dict[str, Array]:
        return {path: jnp.copy(params.edited[path]) for path in paths.values()} if original else {}

    def update(params: Params, state: dict[str, Array], requests: Requests):
        start = {path: params.edited[path] for path in paths.values()}
        centre = state if original else start

        def bind(weights: dict[str, Array]) -> Decoder:
            return model.bind(Params(params.edited | weights, params.frozen))

        def bounded(weights: dict[str, Array]) -> dict[str, Array]:
            if (bound := config.bound) is None:
                return weights
            return jax.tree.map(lambda w, c: c + jnp.clip(w - c, -bound, bound), weights, centre)

        moments = transform.init(start)
        end = learn_facts(model, bind, start, moments, transform, requests, first, config, bounded)
        deltas = jax.tree.map(jnp.subtract, end.weights, start)
        info = EditInfo(deltas, end.metrics, all_finite(end.weights.values()))
        return Params(params.edited | end.weights, params.frozen), state, info

    return Editor(init, update, remembers=original)
