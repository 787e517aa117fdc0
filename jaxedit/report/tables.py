"""Tables for the terminal: runs and their scores, editors, facts."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jaxedit.data.facts import Fact
from jaxedit.editors import METHODS
from jaxedit.editors.presets import PRESETS
from jaxedit.editors.transforms.table import COMPENSATE, TRANSFORMS
from jaxedit.report.record import SCORES, RunRecord


def run_table(runs: Sequence[RunRecord]) -> Table:
    """Three rows a run, in percent: scores on the unedited model, right after each edit, on the final model.

    `growth` is that of the edited matrix whose norm grew most.
    """
    title = "Scores of the edited facts and growth of norms, in percent"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("run", "editor", "edits", "scored"):
        table.add_column(
            name, justify="right" if name == "edits" else "left", no_wrap=name != "run", overflow="fold"
        )
    for name in (*SCORES, "S"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    table.add_column("growth", justify="right", no_wrap=True)
    for run in runs:
        phases = {
            "unedited": run.unedited,
            "right after": run.right_after(),
            "final": run.final,
        }
        for index, (phase, means) in enumerate(phases.items()):
            edits = str(run.edits[-1]) if run.finished else f"{run.edits[-1]} of {run.asked}"
            first = (escape(run.name), escape(run.editor), edits) if index == 0 else ("", "", "")
            last = _growth(run) if index == 2 else ""
            style = "bold" if index == 2 else ""
            scores = [percent(means.get(name)) for name in (*SCORES, "S")]
            table.add_row(*first, phase, *scores, last, style=style, end_section=index == 2)
    damaged = [f"{run.name}: {run.refused} updates were refused" for run in runs if run.refused]
    stopped = [f"{run.name}: stopped; `jaxedit resume` goes on with it" for run in runs if not run.finished]
    if damaged or stopped:
        table.caption, table.caption_justify = escape("\n".join(damaged + stopped)), "left"
    return table


def percent(value: float | None) -> str:
    """With one decimal; a dash for what was not measured."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def _growth(run: RunRecord) -> str:
    return f"{100 * max(run.grown(path) for path in run.matrices):+.2f}"


def editor_table() -> Table:
    """Every editing method: its paper, what it writes and remembers, and for which models it has settings."""
    table = _listing("Editors", ("name", "paper", "kind", "edits", "remembers", "settings for"))
    table.columns[-1].min_width = max(len(model) for _, model in PRESETS)
    for row in METHODS.values():
        models = ", ".join(model for editor, model in PRESETS if editor == row.name)
        table.add_row(f"[bold]{row.name}[/]", row.paper, row.kind, row.edits, row.remembers, models)
    table.caption, table.caption_justify = "For other models layers follow from the depth.", "left"
    return table


def transform_table() -> Table:
    """Every change of an update before it is written: its numbers, what it does, whether it keeps low rank."""
    table = _listing("Transforms", ("name", "numbers", "paper", "does", "updates"))
    for row in TRANSFORMS.values():
        updates = "low rank" if row.low_rank else "dense"
        numbers = row.usage.removeprefix(row.name).removeprefix(":").replace(",", ", ")
        table.add_row(f"[bold]{row.name}[/]", numbers or "–", row.paper or "–", row.does, updates)
    table.caption, table.caption_justify = (
        f"Numbers follow the name in this order: sphere:0.8,0.5. Behind `{COMPENSATE}:` a transform filters the "
        "total change, and updates are dense.",
        "left",
    )
    return table


def _listing(title: str, columns: Sequence[str]) -> Table:
    """A table of texts, whose first column is never broken."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name == columns[0], overflow="fold")
    return table


def fact_table(facts: Iterable[Fact]) -> Table:
    """Facts by relation: how many, and the first of each."""
    facts = list(facts)
    first: dict[str, Fact] = {}
    for fact in facts:
        first.setdefault(fact.relation, fact)
    table = Table(title=f"{len(facts)} facts", title_justify="left", show_footer=False)
    table.add_column("relation")
    table.add_column("facts", justify="right")
    table.add_column("for example")
    for relation, count in sorted(
        Counter(fact.relation for fact in facts).items(), key=lambda x: (-x[1], x[0])
    ):
        fact = first[relation]
        example = (
            f"{escape(fact.prompt)} [dim]{escape(fact.target_true)}[/] → [bold]{escape(fact.target_new)}[/]"
        )
        table.add_row(escape(relation) or "–", str(count), example)
    return table
