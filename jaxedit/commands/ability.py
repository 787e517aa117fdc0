"""`jaxedit ability`: what the model of a stored run can still do, at any of its steps."""

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
from jaxedit.pipeline.ability import ability_at
from jaxedit.pipeline.asked import AbilityAt
from jaxedit.pipeline.found import ability_of, plain, require_new, write_ability
from jaxedit.pipeline.spread import spread
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.report.progress import reporting
from jaxedit.report.tables import percent
from jaxedit.trajectory.store import RunFolder


@dataclass(frozen=True, kw_only=True)
class AskRun(Computing):
    """Ask the model of a run at some of its steps: few-shot tasks, perplexity, drift, facts written before."""

    run: Positional[Path]
    """The run folder."""
    out: Path | None = None
    """Folder to write; it must not exist. By default that of the run with "-ability" behind its name."""
    steps: tuple[int, ...] = ()
    """After how many updates; 0 is the model before the first. By default `points` of them, evenly spread."""
    points: int = 3
    """How many steps where none are named."""
    config: Annotated[AbilityConfig, arg(name="")] = field(default_factory=AbilityConfig)


def execute_ability(command: AskRun, out: Console, err: Console) -> None:
    """Asks, and writes the answers, as `pipeline.found.write_ability` does."""
    folder = command.out or ability_of(command.run)
    require_new(folder)
    require_at_least(command, points=2)
    start = time.monotonic()
    stored = RunFolder.open(command.run)
    steps = command.steps or tuple(spread(range(stored.updates + 1), command.points))
    with reporting(err, "loading the model") as report:
        found = list(ability_at(command.run, steps, command.config, report))
    write_ability(folder, stored, steps, command.config, [plain(one) for one in found])
    out.print(ability_table(found))
    if any(one.retention for one in found):
        out.print(retention_table(found))
    say(out, f"All numbers are in {folder}; it took {time.monotonic() - start:.0f} s.")


def ability_table(found: Sequence[AbilityAt]) -> Table:
    """One row a step: weighted F1 of every task by likelihood and by generation, and what the text says."""
    table = Table(
        title="Weighted F1 in percent: likeliest option / generated answer",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("updates", "facts", *found[0].tasks, *(("invalid %",) if found[0].tasks else ())):
        table.add_column(name, justify="right")
    with_text = found[0].perplexity is not None
    for name in ("perplexity", "KL, nats", "same next token %") if with_text else ():
        table.add_column(name, justify="right")
    if found[0].entropy is not None:
        table.add_column("entropy", justify="right")
    for one in found:
        cells = [f"{100 * x.likelihood.f1:.1f} / {100 * x.generation.f1:.1f}" for x in one.tasks.values()]
        if one.tasks:
            invalid = sum(x.generation.invalid for x in one.tasks.values()) / len(one.tasks)
            cells.append(f"{100 * invalid:.1f}")
        if one.perplexity is not None and one.drift is not None:
            cells += [f"{one.perplexity:.2f}", f"{one.drift.kl:.4g}", f"{100 * one.drift.agreement:.1f}"]
        if one.entropy is not None:
            cells.append(f"{one.entropy:.1f}")
        table.add_row(str(one.step), str(one.facts), *cells)
    return table


def retention_table(found: Sequence[AbilityAt]) -> Table:
    """One row a step and group of ages: scores of its facts right after they were written, and now."""
    table = Table(title="Facts by age, in percent", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = ("ES", "PS", "NS")
    for name in ("updates", "ages", "facts", *(f"{x} then / now" for x in names), "kept"):
        table.add_column(name, justify="right")
    for one in found:
        for group in one.retention:
            pairs = (f"{percent(group.then.get(x))} / {percent(group.now[x])}" for x in names)
            ages = f"{group.youngest} to {group.oldest}"
            table.add_row(str(one.step), ages, str(group.facts), *pairs, percent(group.kept))
    return table
