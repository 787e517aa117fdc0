"""What measuring a run on the way costs of its time.

    python scripts/bench_watch.py [--run.model smollm2-135m] [--run.editor memit] [--json FILE]

Makes a run in a temporary folder that looks at every chunk, and takes the median of updates and of looks, without the
first of each, which compile. Prints the share of the time that looks take at the default interval, and that of the
norms of every edited matrix and of its change, which are logged at every update: computed here by themselves, on the
run's own last update.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import tyro
from rich.console import Console

from jaxedit.compiling import set_up_compiling
from jaxedit.linalg import change_norm, frobenius
from jaxedit.pipeline import RunConfig, run, trajectory
from jaxedit.pipeline.watch_config import Watch
from jaxedit.roofline import best_time


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            count=24, chunk=6, watch=Watch(measure=True, every=6), model="smollm2-135m"
        )
    )
    """The run; its looks are at every chunk."""
    json: Path | None = None


def main(bench: Bench) -> None:
    set_up_compiling()
    marks: list[tuple[str, int, float]] = []

    def report(stage: str, done: int, total: int) -> None:
        marks.append((stage, done, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        path, watch = str(Path(folder) / "run"), dataclasses.replace(bench.run.watch, every=bench.run.chunk)
        run(dataclasses.replace(bench.run, out=path, watch=watch), report)
        norms = norm_seconds(path)
    looks, chunks = [], []
    for (stage, done, start), (_, _, end) in itertools.pairwise(marks):
        if stage.startswith("looking") and not done:
            looks.append(end - start)
        elif stage == "editing":
            chunks.append(end - start)  # up to the look behind the next chunk
    look, update = median(looks[2:]), median(chunks[1:-1]) / bench.run.chunk
    every = Watch().every
    share = look / (look + every * update)
    result = {
        "model": bench.run.model,
        "editor": bench.run.editor,
        "seconds_look": look,
        "seconds_update": update,
        "every": every,
        "share": share,
        "seconds_norms": norms,
        "share_norms": norms / update,
    }
    out = Console(highlight=False, soft_wrap=True)
    out.print(
        f"{bench.run.editor} on {bench.run.model}: an update {update:.3f} s, a look {look:.3f} s: "
        f"{100 * share:.2f} % of the run's time at every {every} updates; norms of an update {1e3 * norms:.2f} ms: "
        f"{100 * norms / update:.2f} %"
    )
    if bench.json is not None:
        bench.json.write_text(json.dumps(result, indent=1) + "\n")


def norm_seconds(run: str) -> float:
    """Seconds for the norms that the driver logs of one update."""
    found = trajectory(run)[0]
    matrices, change = found.at(found.steps), found.change(found.steps - 1, found.steps)
    norms = jax.jit(
        lambda matrices, change: (
            {path: frobenius(matrix) for path, matrix in matrices.items()},
            {path: change_norm(delta) for path, delta in change.items()},
        )
    )
    return best_time(norms, matrices, change)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
