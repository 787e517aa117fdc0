"""Checkpoint folders of Hugging Face <-> flat parameters by dotted path, both ways, one tensor at a time."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from jaxedit.errors import ModelError
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import Family, HFConfig, TensorMap, family_of
from jaxedit.models.folders import new_folder
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import READABLE, SINGLE, opened, weight_files, write_tensors

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
    folder: Path, config: DecoderConfig, dtype: DTypeLike = jnp.float32
) -> dict[str, Array]:
    """Reads `model.safetensors`, or the shards of its index, into parameters by dotted path.

    Every parameter of the model must come from exactly one tensor, and every tensor of the files must go
    somewhere. Shapes are those of `Model(config).shapes`; all arrays have `dtype`.

    Raises ModelError: one that lists all tensors that are missing, unknown, given twice, of the wrong shape
    or kind, or not finite; or one that names the file that is truncated or damaged.
    """
    reading = _Reading(family_of(config.family), config, np.dtype(dtype))
    files, index = weight_files(folder)
    for file in files:
        reading.read(file, index)
    return reading.result(folder)


class _Reading:
    """Parameters and problems found so far, file after file."""

    def __init__(self, family: Family, config: DecoderConfig, dtype: np.dtype):
        self.family, self.config, self.dtype = family, config, dtype
        self.head = family.heads[0]
        self.shapes = Model(config).shapes
        self.maps = {tensor.name: tensor for tensor in family.tensors(config)}
        self.params: dict[str, Array] = {}
        self.origin: dict[str, str] = {}  # file and name of each tensor seen, by its full name
        self.problems: list[str] = []
        self.tied_head: np.ndarray | None = None

    def read(self, file: Path, index: dict[str, str]) -> None:
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                where = f"{file.name}: {name}"
                if index and index.get(name) != file.name:
                    self.problems.append(f"{where}: the index says {index.get(name, 'nothing of it')}")
                full = self._full_name(name)
                if full is None:
                    continue
                if full in self.origin:
                    self.problems.append(f"{where}: given twice, also as {self.origin[full]}")
                    continue
                self.origin[full] = where
                self._take(full, where, tensors, name)

    def _full_name(self, name: str) -> str | None:
        """The name with the prefix that checkpoints of the bare backbone lack; None for an ignored buffer."""
        prefix = self.family.prefix
        bare = name.removeprefix(prefix)
        if re.fullmatch(self.family.ignored, bare):
            return None
        if name in self.family.heads:
            return self.head
        return name if name in self.maps else prefix + bare

    def _take(self, full: str, where: str, tensors: object, name: str) -> None:
        view = tensors.get_slice(name)  # type: ignore[attr-defined]
        tied = full == self.head and self.config.tied_head
        if full not in self.maps and not tied:
            self.problems.append(
                f"{where}: no such tensor in a {self.family.model_type} model of this config.json"
            )
            return
        mapped = TensorMap(full, ("embedding",)) if tied else self.maps[full]
        expected, found = mapped.stored_shape(self.shapes), tuple(view.get_shape())
        if view.get_dtype() not in READABLE:
            self.problems.append(
                f"{where}: holds {view.get_dtype()}, expected one of {', '.join(sorted(READABLE))}"
            )
        elif found != expected:
            self.problems.append(f"{where}: expected shape {expected}, found {found}")
        else:
            stored = tensors.get_tensor(name).astype(self.dtype, copy=False)  # type: ignore[attr-defined]
            if not np.isfinite(stored).all():
                self.problems.append(
                    f"{where}: {int((~np.isfinite(stored)).sum())} values are NaN or infinite"
                )
            elif tied:
                self.tied_head = stored
            else:
                self.params |= {path: jnp.asarray(part) for path, part in mapped.split(stored, self.shapes)}

    def result(self, folder: Path) -> dict[str, Array]:
        """The parameters, in the order of the model. Raises ModelError where anything was wrong."""
        for name, mapped in self.maps.items():
            if name not in self.origin:
                shape = mapped.stored_shape(self.shapes)
                self.problems.append(f"{name}: missing, expected shape {shape}")
        head, embedding = self.tied_head, self.params.get("embedding")
        if head is not None and embedding is not None and not np.array_equal(head, embedding):
            self.problems.append(
                f"{self.origin[self.head]}: differs from the embedding although config.json ties them; "
                "set tie_word_embeddings to false there"
            )
        if self.problems:
            raise ModelError(_listed(folder, self.problems))
        return {path: self.params[path] for path in self.shapes}


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
