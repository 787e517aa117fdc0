"""The static half of a model, and the joining of it with parameters."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import Decoder
from jaxedit.types import Params


@dataclass(frozen=True)
class Model:
    """A decoder without its numbers: the configuration and the Flax graph built from it."""

    config: DecoderConfig

    @cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Decoder(self.config, rngs=nnx.Rngs(0))))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by dotted path."""
        flat = nnx.to_flat_state(self._abstract[1])
        return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in flat}

    def bind(self, params: Params | dict[str, Array]) -> Decoder:
        """The decoder with these parameters, to be called inside traced functions; copies nothing."""
        flat = params.frozen | params.edited if isinstance(params, Params) else params
        nested = unflatten_dict({tuple(_keys(path)): leaf for path, leaf in flat.items()})
        return nnx.merge(self._abstract[0], nested)

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

    def matrix_paths(self, layers: Iterable[int], names: Iterable[str]) -> tuple[str, ...]:
        """Kernel paths of the linear layers `names` ("mlp.up", "attention.query", ...) in each of `layers`.

        Raises ConfigError for a layer out of range, and for a name that the blocks do not have.
        """
        found = []
        for layer in self.edited_paths(layers):
            start = f"layers.{layer}."
            known = [
                path.removeprefix(start).removesuffix(".kernel")
                for path in self.shapes
                if path.startswith(start) and path.endswith(".kernel")
            ]
            for name in names:
                if name not in known:
                    raise ConfigError(unknown_name("matrix", name, known))
                found.append(f"{start}{name}.kernel")
        return tuple(found)


def join(params: Params) -> dict[str, Array]:
    """All parameters in one flat dict, edited matrices as their float32 masters."""
    return params.frozen | params.edited


def _keys(path: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in path.split(".")]


jax.tree_util.register_static(Model)
