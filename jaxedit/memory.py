"""How many facts a device works on at once: what the activations of a gradient need, and what there is.

Estimates, made of shapes alone so that the same run on the same machine is cut in the same way; tests compare them
with what the compiler sets aside.
"""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from jaxedit.models.config import DecoderConfig
from jaxedit.models.packing import Size

FLOAT = 4  # bytes; scores of attention and everything read from the vocabulary are float32
COPIES = 3  # of a distribution over the vocabulary: logits, their logarithmic softmax, the gradient
KEPT = 0.9  # of a device's memory; the rest is for what the compiler needs besides
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Work(NamedTuple):
    """What one fact, or one row of text, asks of a gradient."""

    tokens: int  # whose activations are kept
    context: int  # tokens that each of them sees, at most
    layers: int  # above what is trained
    reads: int  # tokens whose next-token distribution is read


class Cut(NamedTuple):
    """How a batch is worked on."""

    pieces: int
    remat: bool
    needed: int  # bytes for the activations of a piece
    columns: bool = False  # with transposed copies of the frozen matrices (`jaxedit.models.columns`)
    sizes: tuple[Size, ...] = ()  # of a piece's value loop (`jaxedit.values.ValueConfig.sizes`)


def activation_bytes(config: DecoderConfig, work: Work, itemsize: int, remat: bool = False) -> int:
    """Bytes that the gradient of one fact keeps: of every layer, or with `remat` their inputs and one layer."""
    inside = itemsize * _layer_numbers(config) + COPIES * FLOAT * config.n_heads * work.context
    layers = inside + itemsize * config.d_model * work.layers if remat else inside * work.layers
    return work.tokens * layers + COPIES * FLOAT * work.reads * config.vocab_size


def _layer_numbers(config: DecoderConfig) -> int:
    """Numbers that a layer keeps of a token for its gradient."""
    heads = (config.n_heads + config.n_kv_heads) * config.head_dim
    return 8 * config.d_model + 2 * heads + (4 if config.gated_mlp else 5) * config.d_ff


def cut_for(facts: int, config: DecoderConfig, work: Work, itemsize: int, budget: float) -> Cut:
    """The fewest pieces whose activations fit the budget; layers are computed again only where one fact does not.

    Where not even that fits, one fact at a time with remat.
    """
    whole, again = (activation_bytes(config, work, itemsize, remat) for remat in (False, True))
    remat = budget < whole
    each = again if remat else whole
    pieces = -(-facts // min(max(int(budget // each), 1), facts))
    return Cut(pieces, remat, each * -(-facts // pieces))


def device_memory() -> int:
    """Bytes of the first device, as its runtime gives them; of a CPU those of the machine, or of its container."""
    found = jax.local_devices()[0].memory_stats()
    if found and "bytes_limit" in found:
        return int(found["bytes_limit"])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
