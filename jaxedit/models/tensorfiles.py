"""Safetensors on disk: which files a checkpoint has, their tensors one at a time, and writing them."""

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = {"F64", "F32", "F16", "BF16"}
WRITABLE: dict[np.dtype, str] = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",  # importing ml_dtypes is also what lets safetensors read BF16
}


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a checkpoint folder, and for a sharded one the file of each tensor by the index.

    Raises ModelError where there are none, or the index is not readable or names files outside the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder}: no {SINGLE} and no {INDEX}; save the model as safetensors first")
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{folder / INDEX}: expected an object 'weight_map' from tensor name to file name")
    names = sorted(set(index.values()))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ModelError(f"{folder / INDEX}: not names of safetensors files in this folder: {outside}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder}: the index names files that are absent: {absent}; download the model again"
        )
    return [folder / name for name in names], index


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError, naming the file, where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is absent; a model folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}; download the model again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open safetensors file (of `safetensors.safe_open`) with numpy tensors.

    Raises ModelError, naming the file, where it is truncated or its header is not valid.
    """
    try:
        reader = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is truncated or not a safetensors file ({error}); download the model again"
        ) from error
    with reader:
        yield reader


def write_tensors(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: np.dtype, data: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file, holding one array of `data` at a time.

    `tensors` lists name and shape of each array, in the order of `data`; all are of the same `dtype`.
    Raises ModelError for a dtype other than float32, float16 and bfloat16, and for data of another shape.
    """
    if dtype not in WRITABLE:
        raise ModelError(f"weights cannot be saved as {dtype}; allowed: {', '.join(map(str, WRITABLE))}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    shapes, end = dict(tensors), 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": WRITABLE[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, shape), array in zip(shapes.items(), data, strict=True):
            if array.shape != shape:
                raise ModelError(f"{path}: {name} has shape {array.shape}, announced as {shape}")
            file.write(np.ascontiguousarray(array, dtype).view(np.uint8).data)
