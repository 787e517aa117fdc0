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

from jaxedit.commands.common import Computing, say
from jaxedit.configs import require_at_least
from jaxedit.errors import RunError
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.sweep import Engine, Outcome, points, read_grid, sweep
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
    options = {name: values[0] for name, values in read_grid(command.options).items()}
    outcomes = []
    for outcome in sweep(chosen, command.engine, command.jobs, options):
        outcomes.append(outcome)
        state = "finished" if outcome.error is None else f"failed: {outcome.error}"
        say(err, f"{len(outcomes)} of {len(chosen)}: {outcome.point.config.out}: {state}")
    rows = [row_of(outcome) for outcome in outcomes]
    file = Path(command.config.out) / COLLECTED
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    out.print(sweep_table(rows))
    say(out, f"The table is in {file}")
    if failed := [outcome for outcome in outcomes if outcome.error is not None]:
        messages = "; ".join(f"{outcome.point.config.out}: {outcome.error}" for outcome in failed)
        raise RunError(f"{len(failed)} of {len(chosen)} runs failed: {messages}")


def row_of(outcome: Outcome) -> dict[str, Any]:
    """A run's settings, and what came of it."""
    config = outcome.point.config
    row: dict[str, Any] = {"run": config.out, **outcome.point.values, "error": outcome.error}
    if outcome.error is not None:
        return row
    record = read_run(config.out)
    growth = max(float(record.growth(path)[-1]) for path in record.norm)
    return row | {
        "right_after": _plain(record.right_after()),
        "final": _plain(record.final),
        "growth": growth,
    }


def _plain(means: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in means.items()}


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
