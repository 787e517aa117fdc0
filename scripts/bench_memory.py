"""What a run of MEMIT needs of a device's memory, beside what it has to hold: compiled for a shape, nothing is run.

    python scripts/bench_memory.py [--shapes gpt2-xl ...] [--batch 80] [--micro-batch 5] [--out FOLDER]

To hold are the parameters, float32 masters of the matrices edited, and the inverse that every edit is solved with, in
float64, made of their keys' second moments. What a piece of the batch needs beside, its activations, is told apart by
compiling for pieces of twice as many facts. Weights are float32: compiled for a CPU, narrower ones are widened, which
no accelerator does.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from transformers import AutoConfig

from jaxedit.editors import method
from jaxedit.memory import FLOAT, activation_bytes
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.parallel import OneDevice
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import Params
from scripts.bench_accelerator import made_up, work_of
from scripts.shapes import SHAPES


@dataclass(frozen=True)
class Bench:
    """What to compile."""

    shapes: tuple[str, ...] = ("smollm2-135m", "gpt2-xl", "llama-3.2-3b")
    batch: int = 80
    micro_batch: int = 5
    out: Path | None = None
    """Folder for memory.json."""


def main(bench: Bench) -> None:
    console = Console(highlight=False, soft_wrap=True)
    rows = []
    for shape in bench.shapes:
        row = measure(bench, shape)
        rows.append(row)
        gib = {name: value / 2**30 for name, value in row.items() if isinstance(value, int)}
        console.print(
            f"{shape}, {bench.batch} facts in pieces of {bench.micro_batch}: {gib['parameters']:.2f} GiB of weights"
            f", {gib['masters']:.2f} of masters, {gib['inverses']:.2f} of inverses; at the peak {gib['peak']:.2f}"
            f", of which {gib['activations']:.2f} are a piece's activations ({gib['estimate']:.2f} by the estimate"
            f" of jaxedit.memory): the rest is {row['ratio']:.2f} times what has to be held"
        )
    if bench.out is not None:
        bench.out.mkdir(parents=True, exist_ok=True)
        (bench.out / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")


def measure(bench: Bench, shape: str) -> dict[str, Any]:
    """Bytes by name, and the peak without activations over what has to be held."""
    config = decoder_config(AutoConfig.for_model(**SHAPES[shape]).to_dict())
    settings = method("memit").configure(config)
    small, large = (
        peak(bench.batch, size, config, settings) for size in (bench.micro_batch, 2 * bench.micro_batch)
    )
    whole, layers = Model(config), len(settings.layers)
    masters = layers * config.d_ff * config.d_model * FLOAT
    held = {
        "parameters": sum(int(np.prod(size)) for size in whole.shapes.values()) * FLOAT - masters,
        "masters": masters,
        "inverses": layers * config.d_ff**2 * 2 * FLOAT,
    }
    return {
        "shape": shape,
        **held,
        "peak": small,
        "activations": large - small,
        "estimate": bench.micro_batch * activation_bytes(config, work_of(config, settings), FLOAT),
        "ratio": (2 * small - large) / sum(held.values()),
    }


def peak(batch: int, micro_batch: int, config: DecoderConfig, settings: Any) -> int:
    """Bytes that one update of a run holds at once, the copy of its matrices that is being saved included."""
    pieces = batch // micro_batch
    model = Model(config, OneDevice(pieces))
    moments = {layer: jnp.eye(config.d_ff) for layer in settings.layers}
    editor = method("memit").build(model, moments, settings)
    flat = {path: jax.ShapeDtypeStruct(size, jnp.float32) for path, size in model.shapes.items()}
    paths = set(model.edited_paths(settings.layers).values())
    edited = {path: flat[path] for path in sorted(paths)}
    frozen: Any = {path: leaf for path, leaf in flat.items() if path not in paths}
    state = editor.init(Params({path: jnp.zeros(edited[path].shape) for path in edited}, frozen))
    facts = made_up(config, batch, pieces, np.random.default_rng(0))
    apply: Any = chunk_function(editor)
    used = apply.lower(edited, frozen, state, Chunk(stack([facts]), None)).compile().memory_analysis()
    outputs = used.output_size_in_bytes - used.alias_size_in_bytes
    copies = sum(int(np.prod(leaf.shape)) for leaf in edited.values()) * FLOAT
    return int(used.argument_size_in_bytes + outputs + used.temp_size_in_bytes + copies)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
