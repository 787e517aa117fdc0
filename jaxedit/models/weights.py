"""Checkpoint folders of Hugging Face <-> flat parameters by dotted path, both ways, one tensor at a time."""

import functools
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from jaxedit.errors import ModelError
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import Bounds, Family, HFConfig, TensorMap, family_of
from jaxedit.models.folders import new_folder
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import READABLE, SINGLE, opened, weight_files, write_tensors
from jaxedit.parallel import ONE_DEVICE, Devices, parameter_sharding

SHOWN = 20  # problems spelled out in one message
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def load_safetensors_folder(
    folder: Path, config: DecoderConfig, dtype: DTypeLike = jnp.float32, devices: Devices = ONE_DEVICE
) -> dict[str, Array]:
    """Reads `model.safetensors`, or the shards of its index, into parameters by dotted path.

    Every parameter of the model must come from exactly one tensor, and every tensor of the files must go
    somewhere. Shapes are those of `Model(config).shapes`; all arrays have `dtype`. They lie where `devices` want
    them, and of one that is split a process reads the slices of its own devices.

    Raises ModelError: one that lists all tensors that are missing, unknown, given twice, of the wrong shape
    or kind, or not finite; or one that names the file that is truncated or damaged.
    """
    reading = _Reading(family_of(config.family), config, np.dtype(dtype), devices)
    files, index = weight_files(folder)
    for file in files:
        reading.find(file, index)
    return reading.result(folder)


class _Stored(NamedTuple):
    """A tensor of a checkpoint, where it lies."""

    file: Path
    name: str

    def __str__(self) -> str:
        return f"{self.file.name}: {self.name}"

    def read(self, bounds: Bounds) -> np.ndarray:
        """The tensor within `bounds`. The file is opened anew: while it is, pages read of it stay in memory."""
        with opened(self.file) as tensors:
            return tensors.get_slice(self.name)[tuple(slice(*pair) for pair in bounds)]


class _Reading:
    """Tensors and problems found so far, file after file, and then the parameters."""

    def __init__(self, family: Family, config: DecoderConfig, dtype: np.dtype, devices: Devices):
        self.family, self.config, self.dtype, self.devices = family, config, dtype, devices
        self.head = family.heads[0]
        self.shapes = Model(config).shapes
        self.maps = {tensor.name: tensor for tensor in family.tensors(config)}
        self.found: dict[str, _Stored] = {}  # by full name
        self.unfit: set[str] = set()  # full names of the wrong shape or kind
        self.problems: list[str] = []

    def find(self, file: Path, index: dict[str, str]) -> None:
        """Notes what a file holds, without its numbers."""
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                where = _Stored(file, name)
                if index and index.get(name) != file.name:
                    self.problems.append(f"{where}: the index says {index.get(name, 'nothing of it')}")
                full = self._full_name(name)
                if full is None:
                    continue
                if full in self.found:
                    self.problems.append(f"{where}: given twice, also as {self.found[full]}")
                    continue
                self.found[full] = where
                self._examine(full, where, tensors.get_slice(name))

    def _full_name(self, name: str) -> str | None:
        """The name with the prefix that checkpoints of the bare backbone lack; None for an ignored buffer."""
        prefix = self.family.prefix
        bare = name.removeprefix(prefix)
        if re.fullmatch(self.family.ignored, bare):
            return None
        if name in self.family.heads:
            return self.head
        return name if name in self.maps else prefix + bare

    def _map(self, full: str) -> TensorMap | None:
        """Where a tensor goes; a head that is tied goes where the embedding does."""
        if full == self.head and self.config.tied_head:
            return TensorMap(full, ("embedding",))
        return self.maps.get(full)

    def _examine(self, full: str, where: _Stored, view: Any) -> None:
        mapped = self._map(full)
        if mapped is None:
            self.problems.append(
                f"{where}: no such tensor in a {self.family.model_type} model of this config.json"
            )
            return
        expected, found = mapped.stored_shape(self.shapes), tuple(view.get_shape())
        if view.get_dtype() not in READABLE:
            kinds = ", ".join(sorted(READABLE))
            self.problems.append(f"{where}: holds {view.get_dtype()}, expected one of {kinds}")
        elif found != expected:
            self.problems.append(f"{where}: expected shape {expected}, found {found}")
        else:
            return
        self.unfit.add(full)

    def result(self, folder: Path) -> dict[str, Array]:
        """The parameters, in the order of the model. Raises ModelError where anything was wrong."""
        params: dict[str, Array] = {}
        for full, mapped in self.maps.items():
            if full not in self.found:
                shape = mapped.stored_shape(self.shapes)
                self.problems.append(f"{full}: missing, expected shape {shape}")
            elif full not in self.unfit:
                params |= self._parameters(full, mapped)
        if self.problems:
            raise ModelError(_listed(folder, self.problems))
        return {path: params[path] for path in self.shapes}

    def _parameters(self, full: str, mapped: TensorMap) -> dict[str, Array]:
        """What a tensor holds, by path, placed; notes numbers that are not finite."""
        wrong, differs = 0, False

        def part(path: str, bounds: Bounds) -> np.ndarray:
            nonlocal wrong, differs
            numbers = self._part(full, path, bounds)
            wrong += int(np.count_nonzero(~np.isfinite(numbers)))
            differs |= path == "embedding" and not self._agrees_with_head(numbers, bounds)
            return numbers

        placed = {path: self._placed(path, functools.partial(part, path)) for path in mapped.paths}
        if wrong:
            self.problems.append(f"{self.found[full]}: {wrong} values are NaN or infinite")
        elif differs:
            self.problems.append(
                f"{self.found[self.head]}: differs from the embedding although config.json ties them; "
                "set tie_word_embeddings to false there"
            )
        return placed

    def _part(self, full: str, path: str, bounds: Bounds) -> np.ndarray:
        """Of one tensor, what of a parameter lies within `bounds`."""
        mapped = self._map(full)
        assert mapped is not None, full
        return mapped.part(path, bounds, self.shapes, self.found[full].read).astype(self.dtype, copy=False)

    def _placed(self, path: str, part: Callable[[Bounds], np.ndarray]) -> Array:
        """A parameter from its parts, each asked for once and for devices of this process only."""
        shape = self.shapes[path]
        sharding = parameter_sharding(path, shape, self.devices)
        if sharding is None:
            return jnp.asarray(part(tuple((0, size) for size in shape)))
        holders = defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            slices = zip(index or (), shape, strict=True)
            holders[tuple(s.indices(size)[:2] for s, size in slices)].append(device)
        pieces = []
        for bounds, devices in holders.items():
            numbers = part(bounds)
            pieces += [jax.device_put(numbers, device) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    def _agrees_with_head(self, embedding: np.ndarray, bounds: Bounds) -> bool:
        """Whether a head that is stored although it is tied is the embedding, within `bounds`."""
        if not self.config.tied_head or self.head not in self.found or self.head in self.unfit:
            return True
        return np.array_equal(self._part(self.head, "embedding", bounds), embedding)


def _listed(folder: Path, problems: list[str]) -> str:
    lines = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
    head = f"{folder}: {len(problems)} problem(s) with the weights; download again or correct config.json:"
    return "\n  ".join([head, *lines])


def save_folder(
    folder: Path,
    flat: dict[str, Array],
    config: DecoderConfig,
    hf_config: HFConfig,
    *,
    source: Path | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Path:
    """Writes a checkpoint folder that Hugging Face's transformers loads as the same model; returns it.

    `hf_config` is the original `config.json`, written back with only its dtype changed. Tokenizer files and
    `generation_config.json` are copied from the `source` folder. The folder appears complete or not at all.

    Raises ModelError where the folder exists and is not empty, and where `flat` lacks, adds or misshapes a
    parameter or holds numbers that are not finite in `dtype`.
    """
    shapes, dtype = Model(config).shapes, np.dtype(dtype)
    maps = family_of(config.family).tensors(config)
    wrong = sorted(p for p in shapes.keys() | flat.keys() if p not in flat or flat[p].shape != shapes.get(p))
    if wrong:
        raise ModelError(f"cannot save: parameters missing, unknown or of the wrong shape: {wrong[:SHOWN]}")
    with new_folder(folder) as draft:
        names = [(tensor.name, tensor.stored_shape(shapes)) for tensor in maps]
        write_tensors(draft / SINGLE, names, dtype, _stored(maps, flat, dtype))
        key = "torch_dtype" if "torch_dtype" in hf_config else "dtype"
        text = json.dumps(hf_config | {key: dtype.name}, indent=2)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        for name in COPIED:
            if source is not None and (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
    return folder


def _stored(maps: list[TensorMap], flat: dict[str, Array], dtype: np.dtype) -> Iterator[np.ndarray]:
    for tensor in maps:
        with np.errstate(over="ignore"):  # reported just below
            stored = tensor.join(
                [np.asarray(jax.device_get(flat[path])).astype(dtype) for path in tensor.paths]
            )
        if not np.isfinite(stored).all():
            raise ModelError(f"cannot save: {tensor.name} has values that are NaN or infinite in {dtype}")
        yield stored
