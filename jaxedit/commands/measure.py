"""`jaxedit measure`: measures of a stored run, at any of its steps, as tables."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxedit.commands.common import Computing, say
from jaxedit.configs import require_at_least
from jaxedit.errors import ConfigError
from jaxedit.pipeline.growth_record import growth_record
from jaxedit.pipeline.measure import MeasureConfig, Row, measures_at
from jaxedit.pipeline.spread import spread
from jaxedit.report.progress import reporting
from jaxedit.trajectory.store import RunFolder

SHOWN = ("growth", "relative_distance", "stable_rank", "input_overlap", "output_overlap")


@dataclass(frozen=True, kw_only=True)
class Measure(Computing):
    """Measure a run at some of its steps: matrices, the way to them, vectors inside the model."""

    run: Positional[Path]
    """The run folder."""
    out: Path | None = None
    """Folder to write; it must not exist. By default that of the run with "-measures" behind its name."""
    steps: tuple[int, ...] = ()
    """After how many updates; 0 is the model before the first. By default `points` of them, evenly spread."""
    points: int = 11
    """How many steps where none are named."""
    config: Annotated[MeasureConfig, arg(name="")] = field(default_factory=MeasureConfig)


def execute_measure(command: Measure, out: Console, err: Console) -> None:
    """Measures and writes the tables.

    measures.jsonl has one object a number; `null` is what is infinite. measures.npz has the same by columns, for
    `numpy.load`. growth.json has the growth laws of every matrix, where updates are low rank. config.json says
    what was asked for.
    """
    folder = command.out or command.run.resolve().with_name(command.run.resolve().name + "-measures")
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another folder with --out")
    require_at_least(command, points=2)
    start = time.monotonic()
    stored = RunFolder.open(command.run)
    steps = command.steps or tuple(spread(range(stored.updates + 1), command.points))
    with reporting(err, "loading the model") as report:
        rows = list(measures_at(command.run, steps, command.config, report))
    folder.mkdir(parents=True)
    write_rows(rows, folder)
    if laws := growth_record(rows, command.config.seed):
        (folder / "growth.json").write_text(json.dumps(laws, indent=1) + "\n")
    asked = {"run": str(command.run), "steps": steps, **dataclasses.asdict(command.config)}
    (folder / "config.json").write_text(json.dumps(asked, indent=2, default=str) + "\n")
    if rows:
        out.print(step_table(rows, max(steps)))
    say(out, f"{len(rows):,} numbers are in {folder}; it took {time.monotonic() - start:.0f} s.")


def write_rows(rows: Sequence[Row], folder: Path) -> None:
    """measures.jsonl and measures.npz."""
    with (folder / "measures.jsonl").open("w") as file:
        for row in rows:
            line: dict[str, Any] = row._asdict()
            if not math.isfinite(row.value):
                line["value"] = None
            file.write(json.dumps(line) + "\n")
    columns: dict[str, Any] = {}
    if rows:
        columns = dict(zip(Row._fields, map(np.array, zip(*rows, strict=True)), strict=True))
    np.savez_compressed(folder / "measures.npz", **columns)


def step_table(rows: Sequence[Row], step: int) -> Table:
    """What became of every matrix by one step, and what the null model's change of the same size makes of it."""
    table = Table(title=f"After {step} updates", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("matrix", no_wrap=True)
    values = {
        (row.where, row.model, row.measure): row.value for row in rows if row.step == step and not row.prompts
    }
    shown = [name for name in SHOWN if any(key[2] == name for key in values)]
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    matrices = list(dict.fromkeys(where for where, _, _ in values))
    pairs = dict.fromkeys(key[:2] for key in values)
    for where, model in sorted(pairs, key=lambda pair: matrices.index(pair[0])):
        title = "  random change" if model == "random" else where
        table.add_row(title, *(_cell(values.get((where, model, name))) for name in shown))
    return table


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
