"""A change of a model as one small file, to be applied to the same base weights elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxedit.digests import fingerprint
from jaxedit.disk import replace
from jaxedit.errors import RunError
from jaxedit.linalg import added
from jaxedit.trajectory.files import room
from jaxedit.types import LowRank

FORMAT = "jaxedit delta 1"
Change: TypeAlias = LowRank | Float[Array, "..."]


class Delta(NamedTuple):
    """A change of some matrices of a model, and perhaps of scales and biases."""

    weights: str  # fingerprint of the base weights that it belongs to; empty where `before` tells
    change: dict[str, Change]
    before: Mapping[str, str] = {}  # what differs there from the base weights, as `prints` makes it


def write_delta(file: str | Path, delta: Delta) -> None:
    """A safetensors file: `{path}/left` and `{path}/right`, or `{path}/dense`. Raises RunError where it exists."""
    file = Path(file)
    if file.exists():
        raise RunError(f"{file} exists already: choose another file")
    tensors: dict[str, np.ndarray] = {}
    for path, change in delta.change.items():
        parts = change._asdict() if isinstance(change, LowRank) else {"dense": change}
        tensors |= {f"{path}/{name}": np.ascontiguousarray(x) for name, x in parts.items()}
    metadata = {
        "format": FORMAT,
        "weights": delta.weights,  # other versions refuse an empty one
        "before": json.dumps(dict(delta.before)),
        "tensors": fingerprint(tensors),
    }
    with room(file, "Free some space, then write it again."):
        replace(file, save(tensors, metadata))


def read_delta(file: str | Path) -> Delta:
    """The change in a file. Raises RunError where it is none, or is damaged."""
    file = Path(file)
    try:
        content = file.read_bytes()
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise RunError(
                f"{file} has format {metadata['format']!r}; this version of jaxedit reads {FORMAT!r}"
            )
        weights, expected = str(metadata["weights"]), metadata["tensors"]
        before = dict(json.loads(metadata.get("before", "{}")))  # older files have none
    except FileNotFoundError:
        raise RunError(f"there is no file {file}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{file} is no change of a model, or is damaged ({error})") from None
    if fingerprint(tensors) != expected:
        raise RunError(f"{file} is damaged: its numbers are not those that were written")
    return Delta(weights, _changes(file, tensors), before)


def _changes(file: Path, tensors: dict[str, np.ndarray]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition("/")
        if tensor.dtype != np.float32 or (tensor.ndim != 2 and part != "dense"):
            raise RunError(f"{file}: {name!r} is no float32 matrix")
        if part == "dense":
            changes[path] = jnp.asarray(tensor)
        elif part == "left" and f"{path}/right" in tensors:
            if tensor.shape[1:] != tensors[f"{path}/right"].shape[:1]:
                raise RunError(f"{file}: the factors of {path} are of different ranks")
            changes[path] = LowRank(jnp.asarray(tensor), jnp.asarray(tensors[f"{path}/right"]))
        elif part != "right" or f"{path}/left" not in tensors:
            raise RunError(f"{file}: {name!r} is no part of a change")
    return changes


def prints(matrices: Mapping[str, Array]) -> dict[str, str]:
    """Fingerprint of every matrix."""
    return {path: fingerprint(matrix) for path, matrix in matrices.items()}


def require_before(params: Mapping[str, Array], delta: Delta, file: str | Path) -> None:
    """Raises RunError unless the model is the one that the change of a file belongs on, where the file says so."""
    for path, expected in delta.before.items():
        if path not in params or fingerprint(params[path]) != expected:
            raise RunError(
                f"{file} belongs on a model that was edited before, and {path} of this one is another: write that "
                f"model with `jaxedit at RUN STEP --out FOLDER`, where STEP is the first of the change, and apply "
                f"the change to it"
            )


def apply_delta(params: Mapping[str, Array], delta: Delta) -> dict[str, Array]:
    """The matrices of `params` that the change names, in float32 with the change added.

    Raises RunError for a matrix that the model does not have, or has in another shape.
    """
    result = {}
    for path, change in delta.change.items():
        shape = (change.left.shape[0], change.right.shape[1]) if isinstance(change, LowRank) else change.shape
        if path not in params or params[path].shape != shape:
            have = f"of shape {params[path].shape}" if path in params else "no such matrix"
            raise RunError(f"the change has a matrix {path} of shape {shape}, the model has {have}")
        result[path] = added(jnp.asarray(params[path], jnp.float32), change)
    return result
