"""Tables of a run's steps: its updates one by one, and what changed between two of them."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jaxedit.report.record import layer_of
from jaxedit.trajectory.files import sensible
from jaxedit.trajectory.store import RunFolder


def history_table(folder: RunFolder, every: int = 1) -> Table:
    """One row for every `every`th update, and the last: its facts, largest ||Delta|| and growth, what was refused."""
    lines = folder.metrics()
    chunks = {chunk.after: chunk for chunk in folder.journal.chunks}
    kept = {folder.journal.chunks[number - 1].after for number in folder.snapshots() if number}
    table = Table(title=f"Updates of {escape(str(folder.path))}", title_justify="left", box=SIMPLE_HEAD)
    for name, justify in (("update", "right"), ("facts", "left"), ("‖Δ‖", "right"), ("‖W‖", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("refused")
    table.add_column("saved")
    with sensible(folder.path / "metrics.jsonl"):
        for line in lines:
            step = line["update"] + 1
            if line["update"] % max(every, 1) and step != len(lines):
                continue
            facts = ", ".join(line["facts"][:3]) + (" ..." if len(line["facts"]) > 3 else "")
            saved = "snapshot" if step in kept else "chunk" if step in chunks else ""
            table.add_row(
                str(line["update"]),
                escape(facts),
                _largest(line["delta_norm"]),
                _largest(line["norm"]),
                "" if line["applied"] else escape(" and ".join(line["refused"]) or "with its chunk"),
                saved,
            )
    if not folder.finished:
        table.caption = escape(f"not finished; `jaxedit resume {folder.path}` goes on with it")
    return table


def _largest(norms: Mapping[str, float | None]) -> str:
    values = [norm for norm in norms.values() if norm is not None]
    return f"{max(values):.4g}" if len(values) == len(norms) else "not finite"


def change_table(
    title: str, norm: Mapping[str, float], before: Mapping[str, float], change: Mapping[str, float]
) -> Table:
    """One row a matrix: its norm before and after, its growth in percent, and the norm of the change."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("matrix")
    for name in ("‖W‖ before", "‖W‖ after", "growth %", "‖change‖"):
        table.add_column(name, justify="right")
    for path in sorted(norm, key=layer_of):
        growth = f"{100 * (norm[path] / before[path] - 1):+.3f}" if before[path] else "–"
        table.add_row(path, f"{before[path]:.4f}", f"{norm[path]:.4f}", growth, f"{change[path]:.4g}")
    return table
