"""Times many sequences at once against the same sequences one after the other, on a small model.

    python scripts/bench_many.py [--sequences 16] [--edits 50] [--editor memit] [--model FOLDER] [--json FILE]

Both run the same compiled scan over the same edits in other orders; compilation is apart. Prints throughputs.
"""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxedit.data import Fact, encode_requests, load_facts
from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.editors import Settings, method
from jaxedit.models.sources import Checkpoint, load
from jaxedit.statistics import second_moments
from jaxedit.trajectory.run import Chunk, chunk_function, many_function, stack
from tests.cases import FACTS, make_case
from tests.reference.tiny import TINY_CONTEXTS

REPEATS = 3


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    sequences: int = 16
    edits: int = 50
    """Of each sequence, one fact at a time."""
    editor: str = "memit"
    model: Path | None = None
    """A folder of `experiments.small_models`, its files beside it; by default a tiny random model."""
    json: Path | None = None


def main(bench: Bench) -> None:
    ready = tiny() if bench.model is None else trained(bench.model)
    model, chosen = ready.checkpoint.model, method(bench.editor)
    config = chosen.configure(model.config, Settings(layers=ready.layers))
    values = dataclasses.replace(config.values, stop_loss=0.0)
    editor = chosen.build(model, ready.moments, dataclasses.replace(config, values=values))
    params = model.split(ready.checkpoint.params, model.edited_paths(ready.layers).values())
    rng, facts = np.random.default_rng(0), ready.facts
    requests = encode_requests(facts, ready.checkpoint.tokenizer, TINY_CONTEXTS, max_length=128)

    def chunk() -> Chunk:
        order = rng.integers(0, len(facts), bench.edits)
        batches = [jax.tree.map(lambda x: x[np.array([i])], requests) for i in order]  # noqa: B023
        return Chunk(stack(batches), None, jnp.ones(bench.edits, bool))

    chunks = [chunk() for _ in range(bench.sequences)]
    state = editor.init(params)
    alone, together = chunk_function(editor), many_function(editor)
    whole, many = stack(chunks), stack([(params.edited, state)] * bench.sequences)

    def one_by_one() -> Any:
        for one in chunks:
            copies = jax.tree.map(jnp.copy, (params.edited, state))
            jax.block_until_ready(alone(copies[0], params.frozen, copies[1], one))

    def at_once() -> Any:
        copies = jax.tree.map(jnp.copy, many)
        jax.block_until_ready(together(copies[0], params.frozen, copies[1], whole))

    found = {name: timed(run) for name, run in (("one after the other", one_by_one), ("at once", at_once))}
    edits = bench.sequences * bench.edits
    console = Console(highlight=False)
    for name, seconds in found.items():
        console.print(f"{name}: {edits / seconds:.1f} edits a second ({seconds:.2f} s)")
    ratio = found["one after the other"] / found["at once"]
    device = jax.devices()[0].device_kind
    console.print(
        f"{bench.sequences} sequences of {bench.editor} at once: {ratio:.1f}x the throughput, on {device}"
    )
    if bench.json is not None:
        content = {"bench": dataclasses.asdict(bench) | {"json": None}, "device": device, "seconds": found}
        bench.json.write_text(json.dumps(content | {"ratio": ratio}, indent=1) + "\n")


class Ready(NamedTuple):
    """A model, and what an editor needs with it."""

    checkpoint: Checkpoint
    facts: Sequence[Fact]
    layers: tuple[int, ...]
    moments: Mapping[int, jax.Array]


def tiny() -> Ready:
    """Two layers of the tests' random model."""
    with tempfile.TemporaryDirectory() as folder:
        case = make_case("gpt2", Path(folder))
    return Ready(case.checkpoint, FACTS, (0, 1), case.moments)


def trained(folder: Path) -> Ready:
    """The first layer of a small model that knows facts."""
    checkpoint = load(str(folder))
    blocks = token_blocks(read_text(folder.parent / "corpus.txt"), checkpoint.tokenizer, 128, 10_240)
    moments = second_moments(checkpoint.model, checkpoint.params, blocks, (0,))
    return Ready(checkpoint, load_facts(str(folder.parent / "facts.jsonl"))[:100], (0,), moments)


def timed(run: Callable[[], None]) -> float:
    """Median seconds of a few runs after the first, which compiles."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
