"""NNX modules in and out: our decoder as one, and modules that are not ours.

A foreign module is any causal language model in NNX, token ids `[N, T]` to logits `[N, T, vocab]`. What is edited is
named by the path of its matrix in `nnx.state`, such as "blocks.3.mlp.down.kernel": a kernel `[in, out]` of a module
that is called with the keys `[N, T, in]` and gives `keys @ kernel`, plus a bias or not, as `nnx.Linear` does. Its
output is the editors' value.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int

from jaxedit.errors import ConfigError, ModelError, unknown_name
from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.types import Params

Forward = Callable[[Any, Int[Array, "N T"]], Float[Array, "N T vocab"]]
"""Logits of a module for left-aligned rows; padding on the right, which a causal model does not see."""


def to_nnx(model: Model, params: Params | dict[str, Array]) -> Decoder:
    """Our decoder as an NNX module of its own variables: for `nnx.jit`, `nnx.Optimizer` and all else of Flax."""
    return model.bind(params)


def from_nnx(model: Model, decoder: nnx.Module) -> dict[str, Array]:
    """The parameters of such a module by path, as editors take them (`Model.split`).

    Raises ModelError where paths or shapes are not this model's.
    """
    flat = _flat(decoder)
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    if wrong := sorted(set(shapes.items()) ^ set(model.shapes.items())):
        raise ModelError(
            f"the module is not this model's: {wrong[0][0]} {wrong[0][1]} is in one of both alone, and so are "
            f"{len(wrong) - 1} others. Take the module from to_nnx, and leave its graph as it is."
        )
    return flat


@dataclass(frozen=True, eq=False)
class Foreign:
    """A module that is not ours, without its numbers, and the path of the matrix to edit."""

    graph: nnx.GraphDef
    matrix: str
    forward: Forward
    keys: Mapping[str, tuple[Any, ...]] = field(repr=False)  # of every variable, by dotted path
    dtype: Any  # the matrix's own

    def module(self, params: Params) -> Any:
        """The module with these numbers, in variables of its own; the matrix rounded to its own dtype."""
        flat = params.frozen | {path: w.astype(self.dtype) for path, w in params.edited.items()}
        return nnx.merge(self.graph, unflatten_dict({self.keys[path]: x for path, x in flat.items()}))


def adopt(
    module: nnx.Module, matrix: str, forward: Forward = lambda module, tokens: module(tokens)
) -> tuple[Foreign, Params]:
    """The static half of a module, and its numbers, the matrix as float32 master. The module stays as it is.

    Raises ConfigError where the module has no such matrix, naming the nearest ones.
    """
    graph, state = nnx.split(module)
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    flat = _flat(module)
    if matrix not in paths:
        raise ConfigError(unknown_name("matrix", matrix, (name for name, x in flat.items() if x.ndim == 2)))
    if flat[matrix].ndim != 2 or len(paths[matrix]) < 2:
        raise ConfigError(
            f"{matrix} has shape {flat[matrix].shape}: what is edited is the kernel [in, out] of a module of "
            f"the model. Of layers that are stacked for a scan, none has a matrix of its own: unstack them."
        )
    master = flat.pop(matrix)
    foreign = Foreign(graph, matrix, forward, paths, master.dtype)
    return foreign, Params({matrix: jnp.asarray(master, jnp.float32)}, flat)


class Seen(NamedTuple):
    """One run of a foreign module."""

    logits: Float[Array, "N T vocab"]
    keys: Float[Array, "N T d_k"]
    output: Float[Array, "N T d_v"]  # what the matrix's module gave, before anything was added


class Tapped(nnx.Variable[Any]):
    """What goes into the matrix's module from outside, and what is read off it."""


def run(
    foreign: Foreign,
    params: Params,
    tokens: Int[Array, "N T"],
    at: Int[Array, "N"] | None = None,
    delta: Float[Array, "N d_v"] | None = None,
) -> Seen:
    """Runs the module; `delta` is added to what the matrix's module gives at the tokens `at`.

    Raises ConfigError where the forward does not call that module once, with keys by row and token.
    """
    module = foreign.module(params)
    *above, _ = foreign.keys[foreign.matrix]
    owner: Any = functools.reduce(
        lambda x, key: x[key] if isinstance(key, int) else getattr(x, key), above, module
    )
    kind: Any = type(owner)
    owner.__class__ = _watched(kind)
    owner.tapped_calls = Tapped(())
    if at is not None:
        owner.tapped_at, owner.tapped_delta = Tapped(at), Tapped(delta)
    logits = foreign.forward(module, tokens)
    calls = owner.tapped_calls.get_value()
    shapes = [(x.shape, y.shape) for x, y in calls]
    d_k, d_v = params.edited[foreign.matrix].shape
    if shapes != [((*tokens.shape, d_k), (*tokens.shape, d_v))]:
        raise ConfigError(
            f"the module of {foreign.matrix} was called {len(calls)} times in one run over tokens {tokens.shape}, "
            f"with {shapes}: it must be called once, with keys {(*tokens.shape, d_k)} for outputs "
            f"{(*tokens.shape, d_v)}. Name the kernel of such a module, and call the module in the forward."
        )
    return Seen(logits, *calls[0])


@functools.cache
def _watched(kind: Any) -> type[Any]:
    """The same class, its calls kept, delta added to what they give."""

    def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        y = kind.__call__(self, x, *args, **options)
        self.tapped_calls = Tapped((*self.tapped_calls.get_value(), (x, y)))
        if not hasattr(self, "tapped_delta") or y.ndim != 3:
            return y
        at, delta = self.tapped_at.get_value(), self.tapped_delta.get_value()
        return y.at[jnp.arange(len(y)), at].add(delta.astype(y.dtype))

    return type(f"Watched{kind.__name__}", (kind,), {"__call__": call})


def _flat(module: nnx.Module) -> dict[str, Array]:
    return {".".join(map(str, p)): leaf.get_value() for p, leaf in nnx.to_flat_state(nnx.state(module))}
