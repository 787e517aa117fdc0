"""Training of whole models in sequence: full fine-tuning on facts, and continual pre-training on a text stream."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxedit.editors.objective import Bind, FactConfig, learn_facts, text_nll
from jaxedit.editors.optimiser import Descent, OptimiserConfig, descend, optimiser
from jaxedit.linalg import all_finite
from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.types import EditInfo, Editor, Params, Requests, TextBatch

Learn = Callable[[Bind, dict[str, Array], optax.OptState, Any], Descent]
"""What a batch teaches, from these parameters and moments on."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimiserConfig):
    """Settings of continual pre-training; layers and targets as `Model.parameter_paths` takes them."""

    carried: ClassVar[bool] = True
    layers: tuple[int, ...] | None = None  # None: all, and what lies outside of the layers
    targets: tuple[str, ...] | None = None  # None: every parameter, biases and norms too
    learning_rate: float = 1e-5
    steps: int = 1
    stop_loss: float = 0.0
    clip_norm: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class FullConfig(PretrainConfig, FactConfig):
    """Settings of full fine-tuning on facts."""

    steps: int = 25
    stop_loss: float = 1e-2


def full_fine_tune(model: Model, config: FullConfig) -> Editor:
    """Full fine-tuning: AdamW on all parameters, its moments carried from one batch of facts to the next.

    The state is optax's. Raises ConfigError for a layer out of range or an unknown projection, and as
    `optimiser.rate`.
    """
    first = 0 if config.layers is None else min(config.layers)

    def learn(bind: Bind, start: dict[str, Array], state: optax.OptState, requests: Requests) -> Descent:
        return learn_facts(model, bind, start, state, optimiser(config), requests, first, config)

    return _editor(model, config, learn)


def continue_pretraining(model: Model, config: PretrainConfig) -> Editor:
    """Continual pre-training (Gururangan et al. 2020, arXiv 2004.10964): `update` takes a `TextBatch`.

    The state is optax's. Errors as `full_fine_tune`.
    """

    def learn(bind: Bind, start: dict[str, Array], state: optax.OptState, batch: TextBatch) -> Descent:
        objective = text_nll(bind, batch, model.placement.pieces)
        return descend(objective, start, state, optimiser(config), config)

    return _editor(model, config, learn)


def _editor(model: Model, config: PretrainConfig, learn: Learn) -> Editor:
    paths = model.parameter_paths(config.layers, config.targets)
    transform = optimiser(config)

    def init(params: Params) -> optax.OptState:
        return transform.init({path: params.edited[path] for path in paths})

    def update(params: Params, state: optax.OptState, requests: Any):
        start = {path: params.edited[path] for path in paths}

        def bind(weights: dict[str, Array]) -> Decoder:
            return model.bind(Params(params.edited | weights, params.frozen))

        end = learn(bind, start, state, requests)
        deltas = jax.tree.map(jnp.subtract, end.weights, start)
        info = EditInfo(deltas, end.metrics, all_finite(end.weights.values()))
        return Params(params.edited | end.weights, params.frozen), end.optimiser, info

    return Editor(init, update)
