"""Times what makes trajectories usable: any step of a thousand, the cost of saving, memory over a long run.

    python scripts/bench_trajectory.py [--parts access overhead memory] [--json FILE]

access    a run of 1,000 updates in SmolLM2-135M's shapes (5 matrices of 1536 x 576, rank 1), made of random
          factors by the true driver and writer: seconds of `Trajectory.at` for 50 random steps
overhead  a run of 30 MEMIT edits of SmolLM2-135M, one at a time: seconds in which the run waits for its files,
          and seconds of work in the writer's thread, over the seconds of the chunks after the first
memory    2,000 edits of a tiny model by MEMIT with history: resident memory every 100 updates, seconds of an
          update around the 100th and of the last 100
"""

import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import tyro

from jaxedit import pipeline
from jaxedit.configs import build, read_toml
from jaxedit.pipeline import RunConfig, follow
from jaxedit.trajectory.writer import Done, RunWriter
from scripts.check_kills import make_model
from tests.trajectory.synthetic import write_run

SMOLLM2 = {f"layers.{layer}.mlp.down.kernel": (1536, 576) for layer in range(6, 11)}
Part = Literal["access", "overhead", "memory"]


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    parts: tuple[Part, ...] = ("access", "overhead", "memory")
    updates: int = 1000
    """Of the run whose steps are read."""
    steps: int = 50
    """How many of its steps to read."""
    edits: int = 30
    """Of the run that is timed."""
    long: int = 2000
    """Edits of the run whose memory is watched."""
    json: Path | None = None


def access(bench: Bench, folder: Path) -> dict[str, Any]:
    """Seconds of reading random steps. The first read, which compiles, is apart."""
    run = write_run(folder / "run", bench.updates, 10, SMOLLM2, remembers=False, keep=False)
    found, seconds = run.steps(), []
    for step in [bench.updates // 2, *random.Random(0).sample(range(bench.updates + 1), bench.steps)]:
        start = time.perf_counter()
        jax.block_until_ready(found.at(step))
        seconds.append(time.perf_counter() - start)
    first, *later = seconds
    return {"steps": len(later), "first": first, "median": median(later), "worst": max(later)}


class TimedWriter(RunWriter):
    """A writer that knows how long it worked, and how long it was waited for."""

    worked: list[float]
    waited: list[float]

    def _write(self, done: Done) -> None:
        start = time.perf_counter()
        super()._write(done)
        self.worked.append(time.perf_counter() - start)

    def wait(self) -> None:
        start = time.perf_counter()
        super().wait()
        self.waited.append(time.perf_counter() - start)


def overhead(bench: Bench, folder: Path) -> dict[str, Any]:
    """Shares of the run's time, the first chunk, which compiles, apart."""
    TimedWriter.worked, TimedWriter.waited = [], []
    marks: list[float] = []

    def report(stage: str, done: int, total: int) -> None:
        if stage == "editing" and done:
            marks.append(time.perf_counter())

    follow.RunWriter = TimedWriter  # type: ignore[misc]
    pipeline.run(RunConfig(out=str(folder / "timed"), count=bench.edits, chunk=10), report)
    follow.RunWriter = RunWriter  # type: ignore[misc]
    chunks = len(marks) - 1
    seconds = marks[-1] - marks[0]
    waited, worked = sum(TimedWriter.waited[1 : chunks + 1]), sum(TimedWriter.worked[1:])
    return {
        "chunks": chunks, "seconds": seconds, "seconds an edit": seconds / (bench.edits - 10),
        "waited": waited, "worked": worked, "share waited": waited / seconds, "share worked": worked / seconds,
    }  # fmt: skip


def memory(bench: Bench, folder: Path) -> dict[str, Any]:
    """Resident MB every 100 updates; growth from the first 200 on; seconds of an update."""
    make_model(folder, bench.long)
    given = read_toml(folder / "memit.toml") | {"out": str(folder / "long"), "chunk": 10}
    config = build(RunConfig, given | {"editor": "memit-history"})
    resident: dict[int, float] = {}
    marks: dict[int, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage == "editing":
            marks[done] = time.perf_counter()
        if stage == "editing" and done and done % 100 == 0:
            resident[done] = resident_mb()
            print(f"{done} updates: {resident[done]:.0f} MB", file=sys.stderr)

    pipeline.run(config, report)
    from_200 = [mb for done, mb in resident.items() if done >= 200]
    return {
        "resident": resident,
        "growth": from_200[-1] - from_200[0],
        "range": max(from_200) - min(from_200),
        "seconds": (early := seconds_of(marks, 100)),
        "seconds, last": (late := seconds_of(marks, bench.long - 50)),
        "ratio": late / early,
    }


def seconds_of(marks: dict[int, float], centre: int) -> float:
    """Seconds of an update, the median of the ten chunks around one."""
    return median((marks[end] - marks[end - 10]) / 10 for end in range(centre - 40, centre + 51, 10))


def resident_mb() -> float:
    """Of this process, by the kernel's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def main(bench: Bench) -> None:
    """Prints the figures."""
    measure = {"access": access, "overhead": overhead, "memory": memory}
    results = {}
    for part in bench.parts:
        with tempfile.TemporaryDirectory(prefix="trajectory-") as folder:
            results[part] = measure[part](bench, Path(folder))
        print(f"{part}: " + json.dumps(results[part]))
    if bench.json:
        bench.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
