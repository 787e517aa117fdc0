"""Everything to know of an accelerator in under ten minutes: seconds an edit, share of the floor, memory, numerics.

    python scripts/bench_accelerator.py [--parts gpt2-xl llama-3-8b many parity] [--out FOLDER]

"gpt2-xl" and "llama-3-8b" are MEMIT with its published settings on random weights of that shape, in float32 and
bfloat16, on made-up facts of the lengths of CounterFact: one at a time and in a batch. "many" is sixteen sequences at
once, "parity" the tests that compare the library with PyTorch in float64, which a TF32 product anywhere fails. Each
part is a process of its own. Prints tables and writes FOLDER/PART.json.
"""

import json
import os
import subprocess
import sys
import time
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
from jaxedit.memory import KEPT, Work, activation_bytes, cut_for, device_memory
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.parallel import OneDevice
from jaxedit.roofline import Ceiling, layer_flop, measure_ceiling, value_step_flop
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import Params, Requests
from scripts.shapes import SHAPES

ROOT = Path(__file__).parents[1]
PARITY = (
    "test_linalg.py",
    "test_values.py",
    "editors/test_parity.py",
    "editors/test_closed_form.py",
    "models",
)
DTYPES = {"gpt2-xl": "float32", "llama-3-8b": "bfloat16"}
PUBLISHED = {"gpt2-xl": "1.3-1.6 s", "llama-3-8b": "7.7-9.4 s"}
CONTEXTS, PREFIX, TAIL, TARGET = 6, 16, 8, 3  # rows a fact besides its KL row; tokens, at most


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    parts: tuple[str, ...] = ("gpt2-xl", "llama-3-8b", "many", "parity")
    """Any shape of scripts/shapes.py, "many", "parity"."""
    batch: int = 100
    singles: int = 10
    """Facts edited one at a time."""
    layers: int | None = None
    """Of the model, to try this script where the whole does not fit."""
    size: int = 8192
    """Of the square product that gives the ceiling."""
    out: Path = Path("runs/accelerator")


def main(bench: Bench) -> None:
    bench.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in bench.parts:
        if part == "many":
            code = python(ROOT / "scripts/bench_many.py", "--json", bench.out / "many.json")
        elif part == "parity":
            files = [ROOT / "tests" / file for file in PARITY]
            code = python("-m", "pytest", "-q", "--rootdir", ROOT, *files)
        elif len(bench.parts) > 1:
            layers = ("--layers", bench.layers) if bench.layers else ()
            sizes = ("--batch", bench.batch, "--singles", bench.singles, "--size", bench.size)
            code = python(__file__, "--parts", part, "--out", bench.out, *sizes, *layers)
        else:
            code = 0
            measure(bench, part)
        failed += [part] if code else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def python(*arguments: Any) -> int:
    """The exit code of this Python on these arguments, the device's memory left to whoever asks for it."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, check=False).returncode


def measure(bench: Bench, shape: str) -> None:
    """MEMIT on this shape: prints and writes seconds an edit, share of the floor, memory."""
    dtype = jnp.dtype(DTYPES.get(shape, "float32"))
    values = SHAPES[shape] | (
        {"num_hidden_layers": bench.layers, "n_layer": bench.layers} if bench.layers else {}
    )
    config = decoder_config(AutoConfig.for_model(**values).to_dict())
    settings = method("memit").configure(config)
    work = work_of(config, settings)
    params = random_params(Model(config), settings.layers, dtype)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    moments = {layer: jnp.eye(config.d_ff) for layer in settings.layers}
    cut = cut_for(
        bench.batch,
        config,
        work,
        dtype.itemsize,
        KEPT * device_memory() - held - 5 * len(moments) * config.d_ff**2 * 4,
    )
    ceiling = measure_ceiling(bench.size, dtype=dtype)
    rows = []
    for batch, updates, pieces in ((1, bench.singles, 1), (bench.batch, 1, cut.pieces)):
        model = Model(config, OneDevice(pieces), cut.remat and batch > 1)
        editor = method("memit").build(model, moments, settings)
        facts = [made_up(config, batch, pieces, np.random.default_rng(i)) for i in range(updates)]
        found, losses = time_edits(editor, params, facts)
        activations = -(-batch // pieces) * activation_bytes(config, work, dtype.itemsize, model.remat)
        rows.append(
            {"batch": batch, "pieces": pieces, "remat": model.remat, "held": held, "activations": activations}
            | found
            | {"floor": floor(config, settings, facts, losses, ceiling, params, batch)}
        )
    report = {"shape": shape, "dtype": dtype.name, "device": jax.devices()[0].device_kind, "rows": rows}
    report["ceiling"] = ceiling._asdict()
    (bench.out / f"{shape}.json").write_text(json.dumps(report, indent=1) + "\n")
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{shape}, {dtype.name}, {report['device']}: products {ceiling.matmul / 1e12:.3g} TFLOP/s, copies "
        f"{ceiling.copy / 1e9:.0f} GB/s; published PyTorch {PUBLISHED.get(shape, '-')} an edit"
    )
    for row in rows:
        console.print(
            f"  batch of {row['batch']} in {row['pieces']} pieces{', remat' if row['remat'] else ''}: "
            f"{row['seconds']:.3f} s an edit, {row['floor'] / row['seconds']:.0%} of the floor {row['floor']:.3f} s; "
            f"compiled in {row['compile']:.0f} s; set aside {row['set_aside'] / 2**30:.2f} GiB besides "
            f"{row['arguments'] / 2**30:.2f} GiB of parameters and state; activations estimated at "
            f"{row['activations'] / 2**30:.2f} GiB"
        )


def work_of(config: DecoderConfig, settings: Any) -> Work:
    """What one of the made-up facts asks of MEMIT's gradients, at most."""
    above = config.n_layers - 1 - max(settings.layers)
    return Work((CONTEXTS + 1) * TAIL, PREFIX + TAIL, above, CONTEXTS * TARGET + 1)


def random_params(model: Model, layers: tuple[int, ...], dtype: jnp.dtype) -> Params:
    """Weights of the usual sizes, made on the device matrix by matrix."""

    def make(index: int, path: str, shape: tuple[int, ...]) -> jax.Array:
        if len(shape) == 1:
            return jnp.full(shape, 1.0 if path.endswith("scale") else 0.0, dtype)
        draw = jax.jit(lambda key: (0.02 * jax.random.normal(key, shape)).astype(dtype))
        return draw(jax.random.key(index))

    flat = {path: make(i, path, shape) for i, (path, shape) in enumerate(model.shapes.items())}
    return model.split(flat, model.edited_paths(layers).values())


def made_up(config: DecoderConfig, facts: int, pieces: int, rng: np.random.Generator) -> Requests:
    """Facts of random tokens: contexts in common, subjects of 1 to 4 tokens, tails of 3 to 6 and 1 to 3 of target."""
    facts = -(-facts // pieces) * pieces
    rows = CONTEXTS + 1
    contexts = rng.integers(10, config.vocab_size, (CONTEXTS, PREFIX))
    lead = rng.integers(6, PREFIX - 4, CONTEXTS)
    prefix, prefix_mask = np.zeros((facts, rows, PREFIX), np.int32), np.zeros((facts, rows, PREFIX), bool)
    tail, tail_mask = np.zeros((facts, rows, TAIL), np.int32), np.zeros((facts, rows, TAIL), bool)
    target, target_mask = np.zeros((facts, TARGET), np.int32), np.zeros((facts, TARGET), bool)
    predict_at = np.zeros((facts, CONTEXTS, TARGET), np.int32)
    for i in range(facts):
        subject = rng.integers(10, config.vocab_size, rng.integers(1, 5))
        ends, length = rng.integers(3, 7), rng.integers(1, TARGET + 1)
        rest, goal = (rng.integers(10, config.vocab_size, n) for n in (ends, length))
        target[i, :length], target_mask[i, :length] = goal, True
        for row in range(rows):
            before = np.r_[contexts[row, : lead[row]] if 0 < row < CONTEXTS else [], subject[:-1]].astype(
                np.int32
            )
            after = np.r_[subject[-1:], rest[1:], goal[:-1]] if row < CONTEXTS else subject[-1:]
            after = after[:TAIL]
            if len(before):
                prefix[i, row, -len(before) :], prefix_mask[i, row, -len(before) :] = before, True
            tail[i, row, : len(after)], tail_mask[i, row, : len(after)] = after, True
        predict_at[i] = np.minimum(ends - 1 + np.arange(TARGET), TAIL - 1)
    weight, case = np.ones(facts, np.float32), np.arange(facts)
    found = Requests(prefix, prefix_mask, tail, tail_mask, target, target_mask, predict_at, weight, case)  # type: ignore[arg-type]
    return jax.tree.map(jnp.asarray, found)


def time_edits(editor: Any, params: Params, facts: list[Requests]) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds an edit of the second of two runs of one compiled chunk and what it holds; losses [E, steps, B]."""
    chunk = jax.device_put(Chunk(stack(facts), None))
    state = jax.block_until_ready(editor.init(params))
    start = time.perf_counter()
    apply: Any = chunk_function(editor)
    compiled = apply.lower(params.edited, params.frozen, state, chunk).compile()
    memory, compile_seconds = compiled.memory_analysis(), time.perf_counter() - start
    count, seconds, losses = sum(len(one.weight) for one in facts), 0.0, np.zeros(0)
    for _ in range(2):
        edited, copied = jax.block_until_ready(jax.tree.map(jnp.copy, (params.edited, state)))
        start = time.perf_counter()
        *_, steps = jax.block_until_ready(compiled(edited, params.frozen, copied, chunk))
        seconds = (time.perf_counter() - start) / count
        losses = np.asarray(steps.metrics["value_loss"])
    found = {
        "seconds": seconds,
        "compile": compile_seconds,
        "set_aside": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
    }
    return found, losses


def floor(
    config: DecoderConfig,
    settings: Any,
    facts: list[Requests],
    losses: np.ndarray,
    ceiling: Ceiling,
    params: Params,
    batch: int,
) -> float:
    """Seconds an edit that the value optimisation needs at least: its arithmetic, or reading weights twice a step."""
    layer, total, count = max(settings.layers), 0, 0
    for update, taken in zip(facts, (~np.isnan(losses)).sum(axis=1), strict=True):
        tails = np.asarray(update.tail_mask).sum(axis=(1, 2))
        reads = np.asarray(update.target_mask).sum(axis=1) * CONTEXTS + 1
        for fact, steps in enumerate(taken):
            total += int(steps) * value_step_flop(config, layer, int(tails[fact]), int(reads[fact]))
            count += 1
    arithmetic = total / count / ceiling.matmul
    itemsize = params.frozen["embedding"].dtype.itemsize
    above = (config.n_layers - 1 - layer) * layer_flop(config) / 2 + config.vocab_size * config.d_model
    steps_a_batch = float((~np.isnan(losses)).any(axis=2).sum(axis=1).mean())
    reading = steps_a_batch * 2 * above * itemsize / (ceiling.copy * batch)
    return max(arithmetic, reading)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
