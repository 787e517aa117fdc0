"""Progress of a run on a console: a bar where it is a terminal, a line a step where it is not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

Report = Callable[[str, int, int], None]


@contextmanager
def reporting(console: Console, first: str) -> Iterator[Report]:
    """Yields a report callback; `first` names what is done before its first call."""
    if not console.is_terminal:
        yield _lines(console, first)
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {first: progress.add_task(first, total=1)}
        current = first

        def report(stage: str, done: int, total: int) -> None:
            nonlocal current
            if stage != current:  # what came before is over, whether or not it said so
                before = progress.tasks[tasks[current]]
                progress.update(before.id, completed=before.total)
                current = stage
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


def _lines(console: Console, first: str) -> Report:
    start = time.monotonic()
    console.print(f"{first} ...", markup=False, highlight=False)

    def report(stage: str, done: int, total: int) -> None:
        seconds = f"{time.monotonic() - start:.0f} s"
        console.print(f"{stage}: {done}/{total} ({seconds})", markup=False, highlight=False, soft_wrap=True)

    return report
