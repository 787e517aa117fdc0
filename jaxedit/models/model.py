"""The static half of a model, and the joining of it with parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import Decoder
from jaxedit.parallel import ONE_DEVICE, Devices
from jaxedit.types import LowRank, Params


@dataclass(frozen=True)
class Model:
    """A decoder without its numbers: the configuration and the Flax graph built from it."""

    config: DecoderConfig
    placement: Devices = ONE_DEVICE
    """Over which devices editors spread their work on facts, and in how many pieces."""
    remat: bool = False
    """Whether gradients compute the inside of each layer again instead of keeping it: less memory, more work."""

    @cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Decoder(self.config, rngs=nnx.Rngs(0))))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by dotted path."""
        flat = nnx.to_flat_state(self._abstract[1])
        return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in flat}

    def bind(
        self, params: Params | dict[str, Array], adapters: Mapping[str, LowRank] | None = None
    ) -> Decoder:
        """The decoder with these parameters, to be called inside traced functions; copies nothing.

        `adapters` are low-rank changes of matrices by path; they are applied to the inputs, not merged. Among the
        parameters may be transposed copies (`jaxedit.models.columns`).
        """
        flat = params.frozen | params.edited if isinstance(params, Params) else params
        copies = {path: leaf for path, leaf in flat.items() if path not in self.shapes}
        nested = unflatten_dict(
            {tuple(_keys(path)): leaf for path, leaf in flat.items() if path not in copies}
        )
        decoder = nnx.merge(self._abstract[0], nested)
        decoder.remat = self.remat
        for path, copy in copies.items():
            reduce(_child, _keys(path)[:-1], decoder).columns = nnx.data(copy)
        for path, adapter in (adapters or {}).items():
            linear = reduce(_child, _keys(path)[:-1], decoder)
            linear.adapter = nnx.data(adapter)
        return decoder

    def init(self, key: Array, dtype: jnp.dtype = jnp.float32) -> dict[str, Array]:
        """Fresh random parameters, for tests and training from scratch."""
        _, state = nnx.split(Decoder(self.config, rngs=nnx.Rngs(params=key)))
        return {".".join(map(str, p)): leaf.get_value().astype(dtype) for p, leaf in nnx.to_flat_state(state)}

    def split(self, flat: dict[str, Array], edited: Iterable[str]) -> Params:
        """Parts a flat dict into float32 masters of the `edited` paths and the frozen rest (not copied).

        Raises ConfigError for a path that the model does not have.
        """
        chosen = set(edited)
        if missing := sorted(chosen - flat.keys()):
            raise ConfigError(
                f"no parameter named {missing} in this model; it has {self.config.n_layers} layers"
            )
        masters = {path: jnp.asarray(flat[path], jnp.float32) for path in sorted(chosen)}
        return Params(masters, {path: leaf for path, leaf in flat.items() if path not in chosen})

    def edited_paths(self, layers: Iterable[int]) -> dict[int, str]:
        """Down-projection path by layer. Raises ConfigError for a layer out of range."""
        layers = list(layers)
        for layer in layers:
            if not 0 <= layer < self.config.n_layers:
                raise ConfigError(
                    f"layer {layer} is out of range: the model has layers 0 to {self.config.n_layers - 1}"
                )
        return {layer: self.config.edited_path(layer) for layer in layers}

    def parameter_paths(
        self, layers: Iterable[int] | None = None, targets: Iterable[str] | None = None
    ) -> tuple[str, ...]:
        """Paths of the parameters of `layers` (None: of the whole model, embeddings and final norm too).

        `targets` takes of them only the matrices of these projections: names such as "mlp.down" or
        "attention.query", or "mlp" and "attention" for all of a kind. None takes everything.

        Raises ConfigError for a layer out of range or a projection that the model does not have.
        """
        layers = None if layers is None else list(self.edited_paths(layers))
        if targets is not None:
            names = self._projections(targets)
            blocks = range(self.config.n_layers) if layers is None else layers
            return tuple(f"layers.{layer}.{name}.kernel" for layer in blocks for name in names)
        if layers is None:
            return tuple(self.shapes)
        within = tuple(f"layers.{layer}." for layer in layers)
        return tuple(path for path in self.shapes if path.startswith(within))

    def _projections(self, targets: Iterable[str]) -> list[str]:
        known = self.config.projections
        kinds = {name.split(".")[0] for name in known}
        targets = set(targets)
        if not targets:
            raise ConfigError(f"no projection is named: give one or more of {', '.join(known)}")
        if unknown := sorted(targets - kinds - set(known)):
            raise ConfigError(unknown_name("projection", unknown[0], {*known, *kinds}))
        return [name for name in known if targets & {name, name.split(".")[0]}]


def join(params: Params) -> dict[str, Array]:
    """All parameters in one flat dict, edited matrices as their float32 masters."""
    return params.frozen | params.edited


def _keys(path: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in path.split(".")]


def _child(module: Any, key: str | int) -> Any:
    return module[key] if isinstance(key, int) else getattr(module, key)


jax.tree_util.register_static(Model)
