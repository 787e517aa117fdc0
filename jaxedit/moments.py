"""Second moments of keys for a run: from a text or the model's own, computed once, kept by content."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxedit.data.contexts import Generate, sample_corpus
from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.data.tokens import Tokenizer
from jaxedit.digests import sha256
from jaxedit.disk import moved
from jaxedit.errors import StatisticsError
from jaxedit.models.sources import Checkpoint, default_cache
from jaxedit.processes import by_first, from_first, to_host
from jaxedit.statistics import second_moments


@dataclass(frozen=True)
class MomentSource:
    """Which tokens the second moments are taken over."""

    text: str | None = None
    """UTF-8 text file or folder; without one the model writes its own text, by the run's seed."""
    tokens: int | None = None
    """How many tokens; 10 d_k by default (arXiv 2506.04226)."""
    length: int = 128
    """Tokens a row."""
    cache: bool = True
    """Keep the result, under a name made of everything it depends on."""


def load_moments(
    source: MomentSource,
    checkpoint: Checkpoint,
    layers: Iterable[int],
    generate: Generate,
    key: Array,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[int, Float[Array, "d_k d_k"]]:
    """C0 by layer, from the cache or in one pass over the text.

    Raises StatisticsError for a text that is too short, and for a cached file that is damaged, not finite,
    or was made for another model.
    """
    tokens = source.tokens or 10 * checkpoint.model.config.d_ff
    blocks = None if source.text is None else _blocks(source, checkpoint, tokens)
    provenance = {
        "weights": checkpoint.fingerprint,
        "model": dataclasses.asdict(checkpoint.model.config),
        "dtype": sorted({str(leaf.dtype) for leaf in checkpoint.params.values()}),
        "tokens": tokens,
        "length": source.length,
        "text": _text_identity(checkpoint.tokenizer, key) if blocks is None else sha256(blocks.tobytes()),
    }
    name = sha256(json.dumps(provenance, sort_keys=True).encode())[:24]
    files = {layer: default_cache() / "moments" / name / f"layer-{layer}.safetensors" for layer in layers}
    here = {layer: source.cache and file.exists() for layer, file in files.items()}
    cached = from_first(lambda: here, here)
    found = {layer: file for layer, file in files.items() if cached[layer]}
    empty = jnp.zeros((checkpoint.model.config.d_ff,) * 2)
    moments = from_first(
        lambda: {layer: read_moment(file, checkpoint.fingerprint) for layer, file in found.items()},
        dict.fromkeys(found, empty),
    )
    if missing := files.keys() - found.keys():
        report("collecting second moments", 0, 1)
        if blocks is None:
            blocks = sample_corpus(generate, checkpoint.tokenizer, tokens, source.length, key)
        moments |= second_moments(checkpoint.model, checkpoint.params, blocks, sorted(missing))
        report("collecting second moments", 1, 1)
        if source.cache:
            counted, whole = (
                {"counted": int(blocks.size)},
                to_host({layer: moments[layer] for layer in missing}),
            )
            by_first(lambda: write_moments(files, whole, provenance | counted))
    return {layer: moments[layer] for layer in sorted(moments)}


def _text_identity(tokenizer: Tokenizer, key: Array) -> str:
    """Of a text that the model samples itself."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return f"sampled with key {jax.random.key_data(key).tolist()}, vocabulary {sha256(vocabulary)}"


def _blocks(source: MomentSource, checkpoint: Checkpoint, tokens: int) -> Int[np.ndarray, "N length"]:
    blocks = token_blocks(read_text(str(source.text)), checkpoint.tokenizer, source.length, tokens)
    if blocks.size < tokens - source.length:
        raise StatisticsError(
            f"{source.text} gives {blocks.size} tokens in rows of {source.length}, {tokens} are asked for: "
            f"give a longer text or fewer tokens"
        )
    return blocks


def write_moments(files: dict[int, Path], moments: dict[int, np.ndarray], provenance: dict[str, Any]) -> None:
    """Each layer's moment, in its own file."""
    for layer, moment in moments.items():
        write_moment(files[layer], moment, provenance)


def write_moment(
    file: Path, moment: Float[Array | np.ndarray, "d_k d_k"], provenance: dict[str, Any]
) -> None:
    """A safetensors file with one tensor, its provenance in the metadata; it appears in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.partial")
    save_file(
        {"second_moment": np.asarray(moment)}, temporary, metadata={"provenance": json.dumps(provenance)}
    )
    moved(temporary, file)


def read_moment(file: Path, fingerprint: str) -> Float[Array, "d_k d_k"]:
    """C0 of a file. Raises StatisticsError if it is damaged, not finite, or was made for other weights."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            weights = json.loads(tensors.metadata()["provenance"])["weights"]
            moment = tensors.get_tensor("second_moment")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StatisticsError(
            f"{file} cannot be read as a second moment ({error}); remove it and run again"
        ) from None
    if weights != fingerprint:
        raise StatisticsError(
            f"{file} was collected on the weights {weights[:12]}, the model has {fingerprint[:12]}: "
            f"it belongs to another model. Remove it and run again."
        )
    if not np.isfinite(moment).all():
        raise StatisticsError(f"{file}: the second moment is not finite; remove it and run again")
    return jnp.asarray(moment)
