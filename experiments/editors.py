"""Every editor on the same facts: scores right after each edit and at the end, growth of norms, processor time.

    python experiments/editors.py [--count 100] [--editors memit ft ...] [--batches 1 10] [--jobs 1]

Runs are kept in --out and gone on with after a stop, their tables are written to `editors.md` there. The figures of a
finished run are kept in --rows, a file each, and not made again. Hypernetworks need what
`jaxedit train --editor NAME --out OUT/network-NAME` wrote, and are left out without it. The editor that learns from
text reads the new facts as sentences, over and over.
"""

import dataclasses
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from rich.console import Console

from jaxedit.compiling import set_up_compiling
from jaxedit.data import Fact
from jaxedit.editors import METHODS, Settings
from jaxedit.models.sources import load
from jaxedit.pipeline import RunConfig, TextStream, choose_facts, quiet, resume, run
from jaxedit.pipeline.train import NETWORK
from jaxedit.report.record import RunRecord, read_run
from jaxedit.report.tables import percent
from jaxedit.trajectory.store import RunFolder

SCORES = ("ES", "PS", "NS", "S")
ROW_TOKENS = 128
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare."""

    out: Path = Path("runs/editors")
    rows: Path = Path("experiments/results/editors")
    editors: tuple[str, ...] = tuple(METHODS)
    batches: tuple[int, ...] = (1, 10)
    """Facts written by one update."""
    count: int = 100
    model: str = "smollm2-135m"
    seed: int = 0
    jobs: int = 1
    """Runs at the same time, each a process of its own."""


def main(options: Comparison) -> None:
    console = Console(stderr=True)
    set_up_compiling()
    tasks = [
        (name, size) for size in options.batches for name in options.editors if ready(options, name, size)
    ]
    if options.jobs > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda task: apart(options, *task), tasks))
    rows = []
    for name, size in tasks:
        console.print(f"{name}, {size} at a time", highlight=False)
        rows.append(row_of(options, name, size))
    tables = "\n\n".join(markdown(rows, size) for size in options.batches)
    (options.out / "editors.md").write_text(tables + "\n")
    console.print(f"Written: {options.out / 'editors.md'}", highlight=False)


def ready(options: Comparison, name: str, size: int) -> bool:
    """Whether the editor has run, or has the network that it may need."""
    return (
        kept_row(options, name, size).exists()
        or not METHODS[name].needs_net
        or network(options, name).exists()
    )


def kept_row(options: Comparison, name: str, size: int) -> Path:
    """Where the figures of a finished run are."""
    return options.rows / f"{name}-{size}.json"


def network(options: Comparison, name: str) -> Path:
    """Where the editor's network is looked for."""
    return options.out / f"network-{name}" / NETWORK


def apart(options: Comparison, name: str, size: int) -> None:
    """The run in a process of its own."""
    settings = {"editors": name, "batches": size} | {
        field: getattr(options, field) for field in ("out", "rows", "count", "model", "seed")
    }
    chosen = [word for field, value in settings.items() for word in (f"--{field}", str(value))]
    subprocess.run([sys.executable, __file__, *chosen], check=True, stderr=subprocess.DEVNULL)


def row_of(options: Comparison, name: str, size: int) -> Row:
    """The editor's figures, kept or from its run, which is made or finished if it has to be."""
    kept, facts = (
        kept_row(options, name, size),
        {"model": options.model, "count": options.count, "seed": options.seed},
    )
    if kept.exists():
        row: Row = json.loads(kept.read_text())
        if {key: row[key] for key in facts} != facts:
            sys.exit(f"{kept} is of other facts than {facts}: give --rows another folder")
        return row
    out = options.out / f"{name}-{size}"
    seconds = timed(options, name, size, out)
    record = read_run(out)
    row = {
        "editor": name,
        "batch": size,
        **facts,
        "unedited": shown(record.unedited),
        "right_after": shown(record.right_after()),
        "final": shown(record.final),
        "norm_ratio": {path: float(1 + record.growth(path)[-1]) for path in measured(record)},
        "refused": record.refused,
        "seconds": seconds,
        "settings": RunFolder.open(out).read("environment")["editor"],
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(row, indent=1) + "\n")
    return row


def measured(record: RunRecord) -> list[str]:
    """The edited MLP matrices; of editors that write everything too."""
    return [path for path in record.norm if path in record.unedited_norm]


def timed(options: Comparison, name: str, size: int, out: Path) -> float:
    """Makes the run, or finishes it; processor seconds a fact, scoring included, of the median chunk.

    A process's first chunk compiles, and counts only where there is no other. Chunks are noted as they end, so that a
    stopped run keeps its times.
    """
    reads = METHODS[name].request == "text"
    config = RunConfig(
        out=str(out),
        model=options.model,
        editor=name,
        count=updates(options, size) if reads else options.count,
        network=str(network(options, name)) if METHODS[name].needs_net else None,
        text=TextStream(str(new_text(options, size)), ROW_TOKENS) if reads else TextStream(),
        batch_size=size,
        chunk=10 if size == 1 else 2,
        settings=Settings(),
        seed=options.seed,
    )
    marks: list[tuple[int, float]] = []
    noted = out.with_name(f"{out.name}.chunks.jsonl")

    def report(stage: str, done: int, total: int) -> None:
        if stage != "editing":
            return
        marks.append((done, time.process_time()))
        if len(marks) > 1:
            (before, start), (after, end) = marks[-2:]
            chunk = {"first": len(marks) == 2, "seconds": (end - start) / (after - before)}
            with noted.open("a") as file:
                file.write(json.dumps(chunk) + "\n")

    if out.exists():
        resume(out, report)
    else:
        noted.unlink(missing_ok=True)
        run(config, report)
    chunks = [json.loads(line) for line in noted.read_text().splitlines()]
    return median([c["seconds"] for c in chunks if not c["first"]] or [c["seconds"] for c in chunks]) / size


def updates(options: Comparison, size: int) -> int:
    """How many there are; of text, which is counted by them, as many as of facts."""
    return -(-options.count // size)


def new_text(options: Comparison, size: int) -> Path:
    """The new facts as sentences, prompt and paraphrases, as often as batches of text need them."""
    file = options.out / f"facts-{size}.txt"
    if not file.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        config = RunConfig(model=options.model, count=options.count, seed=options.seed)
        facts = choose_facts(config, load(options.model), quiet)
        once = "\n".join(sentence(fact) for fact in facts) + "\n"
        words = updates(options, size) * size * ROW_TOKENS
        file.write_text(once * -(-words // len(once.split())))
    return file


def sentence(fact: Fact) -> str:
    """What the fact is to become."""
    return f"{fact.prompt} {fact.target_new}."


def shown(means: dict[str, float]) -> dict[str, float]:
    return {name: means[name] for name in SCORES if name in means}


def markdown(rows: list[Row], size: int) -> str:
    """The table of one batch size."""
    chosen = [row for row in rows if row["batch"] == size]
    title = "One at a time" if size == 1 else f"{size} at a time"
    lines = [
        f"## {title}",
        "",
        "| editor | ES | PS | NS | S | ES, end | PS | NS | S | norm | CPU s/edit |",
        "|---|" + "---|" * 10,
    ]
    for row in chosen:
        scores = [percent(row[when].get(name)) for when in ("right_after", "final") for name in SCORES]
        ratio = max(row["norm_ratio"].values())
        lines.append(f"| `{row['editor']}` | {' | '.join(scores)} | {ratio:.3f} | {row['seconds']:.2f} |")
    unedited = [percent(chosen[0]["unedited"].get(name)) for name in SCORES]
    lines.insert(4, f"| unedited | {' | '.join(unedited)} |" + " |" * 6)
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Comparison, description=__doc__))
