"""`jaxedit sweep`: many runs from one configuration, and one table of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from jaxedit.commands.common import TERMINATED, Computing, say
from jaxedit.configs import require_at_least
from jaxedit.disk import replace
from jaxedit.errors import JaxeditError, RunError
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.sweep import Engine, Outcome, points, read_grid, read_options, sweep
from jaxedit.report.record import SCORES, read_run
from jaxedit.report.tables import percent

COLLECTED = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Sweep(Computing):
    """Make a run for every combination of some settings; the same command again goes on after a stop."""

    file: Annotated[Positional[Path | None], arg(metavar="CONFIG.toml")] = None
    """TOML file of a run's options; options given here come before it."""
    grid: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE,... for each: "seed=0,1,2" "editor=memit,ft" "settings.lam=100,1000"."""
    engine: Engine = "here"
    """here: in this process; local: processes of this machine; slurm: jobs of its cluster."""
    jobs: int = 1
    """Runs at the same time, where the engine is another than "here"."""
    options: tuple[str, ...] = ()
    """Of submitit, NAME=VALUE: "slurm_partition=gpu" "timeout_min=600" "gpus_per_node=1"."""
    config: Annotated[RunConfig, arg(name="")] = field(default_factory=lambda: RunConfig(out="runs/sweep"))


def execute_sweep(command: Sweep, out: Console, err: Console) -> None:
    """Makes the runs and writes the table. Raises RunError, with every message, where some failed."""
    require_at_least(command, jobs=1)
    chosen = points(command.config, read_grid(command.grid))
    options = read_options(command.options)
    outcomes = []
    for outcome in sweep(chosen, command.engine, command.jobs, options):
        outcomes.append(outcome)
        state = "finished" if outcome.error is None else f"failed: {outcome.error}"
        state = "stopped" if outcome.stopped else state
        say(err, f"{len(outcomes)} of {len(chosen)}: {outcome.point.config.out}: {state}")
    if any(outcome.stopped for outcome in outcomes):
        say(err, "stopped; the same command goes on")
        raise SystemExit(TERMINATED)
    rows = [row_of(outcome) for outcome in outcomes]
    file = Path(command.config.out) / COLLECTED
    keep(file, rows)
    out.print(sweep_table(rows))
    say(out, f"The table is in {file}")
    if failed := [row for row in rows if row["error"] is not None]:
        messages = "; ".join(f"{row['run']}: {row['error']}" for row in failed)
        raise RunError(f"{len(failed)} of {len(rows)} runs failed: {messages}")


def keep(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows into the table, in one step; rows of other runs that it has stay there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        there = {row["run"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{file} is not a table of a sweep: move it away, or choose another folder") from None
    content = list((there | {row["run"]: row for row in rows}).values())
    replace(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def row_of(outcome: Outcome) -> dict[str, Any]:
    """A run's settings, and what came of it."""
    config = outcome.point.config
    row: dict[str, Any] = {"run": config.out, **outcome.point.values, "error": outcome.error}
    if outcome.error is not None:
        return row
    try:
        record = read_run(config.out)
    except JaxeditError as error:
        return row | {"error": str(error)}
    growth = {"growth": max(float(record.growth(path)[-1]) for path in record.norm)}
    return row | {"right_after": _plain(record.right_after()), "final": _plain(record.final)} | _plain(growth)


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a run, in percent: its settings, scores right after each edit and at the end, growth."""
    known = ("run", "error", "right_after", "final", "growth")
    settings = [name for name in rows[0] if name not in known]
    names = (*SCORES, "S")
    table = Table(
        title="Right after each edit; on the final model; growth of norms, in percent", box=SIMPLE_HEAD
    )
    for name in (*settings, *names, *(f"{name}, end" for name in names), "growth"):
        table.add_column(escape(name), justify="left" if name in settings else "right")
    for row in rows:
        cells = [escape(str(row[name])) for name in settings]
        for phase in ("right_after", "final"):
            cells += [percent(row.get(phase, {}).get(name)) for name in names]
        table.add_row(*cells, percent(row.get("growth")))
    return table
