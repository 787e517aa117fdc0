"""`jaxedit measure`: measures of a stored run, at any of its steps, as tables."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxedit.commands.common import Computing, say
from jaxedit.configs import require_at_least
from jaxedit.pipeline.found import measures_of, require_new, write_measures
from jaxedit.pipeline.measure import measures_at
from jaxedit.pipeline.measured import Row
from jaxedit.pipeline.spread import spread
from jaxedit.pipeline.watch_config import MeasureConfig
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
    """Measures and writes the tables, as `pipeline.found.write_measures` does."""
    folder = command.out or measures_of(command.run)
    require_new(folder)
    require_at_least(command, points=2)
    start = time.monotonic()
    stored = RunFolder.open(command.run)
    steps = command.steps or tuple(spread(range(stored.updates + 1), command.points))
    with reporting(err, "loading the model") as report:
        rows = list(measures_at(command.run, steps, command.config, report))
    write_measures(folder, stored, steps, command.config, rows)
    if rows:
        out.print(step_table(rows, max(steps)))
    say(out, f"{len(rows):,} numbers are in {folder}; it took {time.monotonic() - start:.0f} s.")


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
