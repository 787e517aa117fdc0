"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685), merged into the matrices that they adapt.

With columns an adapted matrix is `W + (alpha / r) B A` (section 4.1). Here weights are `[in, out]`, so an
adapter is `left = A^T`, `right = B^T`. Steps run the adapters beside their matrices, never the merged ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt32

from jaxedit.editors.objective import FactConfig, learn_facts
from jaxedit.editors.optimiser import optimiser
from jaxedit.linalg import all_applied, all_finite
from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.types import EditInfo, Editor, LowRank, Params, Requests

GENERATOR = "threefry2x32"  # named, so that the same seed gives the same adapters under any configuration

Adapters = dict[str, LowRank]
"""By path of the adapted matrix, without the factor alpha / r."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(FactConfig):
    """Settings of LoRA editing: a fresh adapter for every update."""

    layers: tuple[int, ...]
    targets: tuple[str, ...] = ("mlp.down",)  # projections, as `Model.parameter_paths` takes them
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0  # of the adapters' initial values
    learning_rate: float = 5e-3


@dataclass(frozen=True, kw_only=True)
class LoRASequenceConfig(LoRAConfig):
    """Settings of LoRA fine-tuning: one adapter for the whole sequence."""

    carried: ClassVar[bool] = True


class EditKey(NamedTuple):
    """From which the adapter of every update is drawn."""

    key: UInt32[Array, "2"]  # data of the PRNG key of the sequence
    edits: Int[Array, ""]  # updates so far, those of padding alone not counted


class Carried(NamedTuple):
    """The adapters of a sequence and AdamW's moments of them."""

    adapters: Adapters
    optimiser: optax.OptState


def lora(model: Model, config: LoRAConfig) -> Editor:
    """LoRA editing. The change of every matrix is `LowRank` of rank `config.rank`; the state is an `EditKey`.

    Raises ConfigError for a layer out of range or an unknown projection, and as `optimiser.rate`.
    """
    paths = model.parameter_paths(config.layers, config.targets)
    first, scale = min(config.layers), config.alpha / config.rank
    transform = optimiser(config)

    def init(_: Params) -> EditKey:
        return EditKey(jax.random.key_data(_seeded(config.seed)), jnp.zeros((), jnp.int32))

    def update(params: Params, state: EditKey, requests: Requests) -> tuple[Params, EditKey, EditInfo]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=GENERATOR), state.edits)
        start = initial_adapters(key, {path: params.edited[path] for path in paths}, config.rank)

        def bind(adapters: Adapters) -> Decoder:
            return model.bind(params, scaled(adapters, scale))

        moments = transform.init(start)
        end = learn_facts(model, bind, start, moments, transform, requests, first, config)
        merged, deltas = merge(params, scaled(end.weights, scale))
        asked = requests.weight.sum() > 0
        info = EditInfo({**deltas}, end.metrics, all_finite(merged.edited[path] for path in paths))
        return merged, EditKey(state.key, state.edits + asked), info

    return Editor(init, update)


def lora_sequence(model: Model, config: LoRASequenceConfig) -> Editor:
    """LoRA fine-tuning: every update goes on with the adapters and moments of the last.

    What the parameters hold is the merged matrix after every update. The change of one is that of the merged
    product, `LowRank` of rank `2 * config.rank`. Errors as `lora`.
    """
    paths = model.parameter_paths(config.layers, config.targets)
    first, scale = min(config.layers), config.alpha / config.rank
    transform = optimiser(config)

    def init(params: Params) -> Carried:
        matrices = {path: params.edited[path] for path in paths}
        adapters = initial_adapters(_seeded(config.seed), matrices, config.rank)
        return Carried(adapters, transform.init(adapters))

    def update(params: Params, state: Carried, requests: Requests) -> tuple[Params, Carried, EditInfo]:
        def bind(adapters: Adapters) -> Decoder:
            return model.bind(params, changes(state.adapters, adapters, scale))

        end = learn_facts(model, bind, *state, transform, requests, first, config)
        merged, deltas = merge(params, changes(state.adapters, end.weights, scale))
        info = EditInfo({**deltas}, end.metrics, all_finite(merged.edited[path] for path in paths))
        return merged, Carried(end.weights, end.optimiser), info

    return Editor(init, update)


def _seeded(seed: int) -> Array:
    return jax.random.key(seed, impl=GENERATOR)


def initial_adapters(key: Array, matrices: Mapping[str, Array], rank: int) -> Adapters:
    """A Gaussian of variance `1 / in`, B zero: the merged matrix starts as it is. One key for every matrix."""
    adapters = {}
    for index, (path, matrix) in enumerate(sorted(matrices.items())):
        d_in, d_out = matrix.shape
        left = jax.random.normal(jax.random.fold_in(key, index), (d_in, rank)) * d_in**-0.5
        adapters[path] = LowRank(left, jnp.zeros((rank, d_out)))
    return adapters


def scaled(adapters: Adapters, scale: float) -> Adapters:
    """The changes that adapters make to matrices: `(alpha / r) B A`, transposed."""
    return {path: LowRank(left, scale * right) for path, (left, right) in adapters.items()}


def changes(before: Adapters, after: Adapters, scale: float) -> Adapters:
    """The changes of the merged products, `(A' - A) B' + A (B' - B)`: exactly zero where nothing changed."""
    return {
        path: LowRank(
            jnp.concatenate([after[path].left - left, left], axis=1),
            scale * jnp.concatenate([after[path].right, after[path].right - right], axis=0),
        )
        for path, (left, right) in before.items()
    }


def merge(params: Params, deltas: Adapters) -> tuple[Params, Adapters]:
    """The parameters with these changes added to their matrices, and the changes as they were added."""
    merged, deltas = all_applied(params.edited, deltas)
    return Params(params.edited | merged, params.frozen), deltas
