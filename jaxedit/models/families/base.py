"""What a family says: how its configuration reads, and where each tensor of a checkpoint lives here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from jaxedit.errors import ModelError, unknown_name
from jaxedit.models.config import DecoderConfig

HFConfig = dict[str, Any]
"""The content of a checkpoint's `config.json`."""

Bounds = tuple[tuple[int, int], ...]
"""First index and the one behind the last, of every axis."""

LARGEST_SIZE, MOST_LAYERS = 2**26, 1024  # refused beyond, before anything is built to that size

Activation = Literal["gelu_tanh", "gelu", "relu", "silu"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class TensorMap:
    """One tensor of a checkpoint and the parameters it holds.

    Several paths mean that the tensor is their concatenation along our last axis (the outputs). With `groups`
    the axis is so many equal parts, each the concatenation of that part of every parameter: fused projections
    that are interleaved by head. `transposed` tensors are stored `[out, in]`, ours are `[in, out]`.
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False
    groups: int = 1

    def stored_shape(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor, given the shape of every parameter by path."""
        first = shapes[self.paths[0]]
        joined = (*first[:-1], sum(shapes[path][-1] for path in self.paths))
        return joined[::-1] if self.transposed else joined

    def part(
        self,
        path: str,
        bounds: Bounds,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[Bounds], np.ndarray],
    ) -> np.ndarray:
        """One of our parameters within `bounds`, contiguous; `read` gives the checkpoint's tensor within some.

        No more is read than that, but for whole groups of an interleaved tensor.
        """
        before = self.paths[: self.paths.index(path)]
        start, width, whole = (
            sum(shapes[p][-1] for p in paths) // self.groups for paths in (before, (path,), self.paths)
        )
        *rows, (low, high) = bounds
        if self.groups == 1:
            columns = (start + low, start + high)
        else:
            columns = (low // width * whole, -(-high // width) * whole)
        wanted = (*rows, columns)
        stored = read(wanted[::-1] if self.transposed else wanted)
        block = stored.T if self.transposed else stored
        if self.groups > 1:
            block = self._grouped(block, block.shape[-1] // whole)[..., start : start + width]
            first = low // width * width
            block = block.reshape(*block.shape[:-2], -1)[..., low - first : high - first]
        return np.ascontiguousarray(block)

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """The checkpoint's tensor from our parameters, whole and in the order of `paths`; inverse of `part`."""
        whole = parts[0]
        if len(parts) > 1:
            whole = np.concatenate([self._grouped(part, self.groups) for part in parts], axis=-1)
            whole = whole.reshape(*whole.shape[:-2], -1)
        return np.ascontiguousarray(whole.T if self.transposed else whole)

    @staticmethod
    def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
        """[..., out] as [..., groups, out / groups]."""
        return x.reshape(*x.shape[:-1], groups, -1)


def linear(theirs: str, ours: str, bias: bool) -> list[TensorMap]:
    """A linear layer stored `[out, in]`."""
    kernel = TensorMap(f"{theirs}.weight", (f"{ours}.kernel",), transposed=True)
    return [kernel, TensorMap(f"{theirs}.bias", (f"{ours}.bias",))] if bias else [kernel]


def layer_norm(theirs: str, ours: str) -> list[TensorMap]:
    """Scale and bias of a layer norm."""
    return [
        TensorMap(f"{theirs}.weight", (f"{ours}.scale",)),
        TensorMap(f"{theirs}.bias", (f"{ours}.bias",)),
    ]


def rms_norm(theirs: str, ours: str) -> list[TensorMap]:
    """Scale of a root-mean-square norm."""
    return [TensorMap(f"{theirs}.weight", (f"{ours}.scale",))]


@dataclass(frozen=True)
class Family:
    """An architecture of Hugging Face, keyed by its `model_type`."""

    model_type: str
    prefix: str  # of all tensors but the head's; checkpoints of the bare backbone lack it
    ignored: str  # regular expression of buffers that hold no parameters, without the prefix
    config: Callable[[HFConfig], DecoderConfig]
    tensors: Callable[[DecoderConfig], list[TensorMap]]
    heads: tuple[str, ...] = ("lm_head.weight",)  # names of the head's matrix; the first is written


class Settings:
    """Reads a `config.json`; the first wrong value raises a ModelError that names it."""

    def __init__(self, values: HFConfig, family: str):
        self.values, self.family = values, family

    def integer(self, name: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        """A positive integer, `most` at most; `default` where the key is absent or null."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.wrong(name, f"a positive integer, {most} at most")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; `default` where the key is absent or null."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(name, "a positive number")
        return float(value)

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """As `integer`, but None where the key is null; `default` where it is absent."""
        return None if self.values.get(name, default) is None else self.integer(name, default)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """As `number`, but None where the key is null; `default` where it is absent."""
        return None if self.values.get(name, default) is None else self.number(name, default)

    def heads(self, width: tuple[str, int], count: tuple[str, int]) -> tuple[int, int]:
        """The model's width and its number of heads, which divides it; each is given by its key and default."""
        d_model, n_heads = self.integer(*width), self.integer(*count)
        if d_model % n_heads:
            raise self.wrong(width[0], f"a multiple of {count[0]} = {n_heads}")
        return d_model, n_heads

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `default` where the key is absent or null."""
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """Our name of the activation that Hugging Face calls `name`."""
        value = self._given(name, default)
        if value not in ACTIVATIONS:
            message = unknown_name("activation", str(value), ACTIVATIONS)
            raise ModelError(f"config.json of this {self.family} model: {name}: {message}")
        return ACTIVATIONS[cast(str, value)]

    def refuse(self, name: str, allowed: object) -> None:
        """Raises where an option that this library does not compute has another value than `allowed`."""
        value = self.values.get(name, allowed)
        if value is not None and value != allowed:
            raise ModelError(
                f"config.json of this {self.family} model: {name} = {value!r} is not supported, "
                f"only {allowed!r}"
            )

    def wrong(self, name: str, expected: str) -> ModelError:
        """The error for a value of the wrong kind."""
        value = repr(self.values[name]) if name in self.values else "missing"
        return ModelError(f"config.json of this {self.family} model: {name} is {value}, expected {expected}")

    def _given(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        return default if value is None else value
