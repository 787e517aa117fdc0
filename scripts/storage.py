"""What a long sequence of edits costs on disk: the arithmetic, and the bytes of run folders.

    python scripts/storage.py [RUN ...]

The law: the updates of a run take at most 1.1 x 4 x rank x (d_in + d_out) bytes for each edit and edited
matrix. Beside them lies a constant that does not grow with the number of edits: snapshots of the matrices (17 at
most), the editor's state (2), documents and figures. Lines of metrics and journal grow with the edits, too; they
are counted apart, since they hold text and scores.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import tyro
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from tyro.conf import Positional

from jaxedit.errors import RunError
from jaxedit.trajectory.store import RunFolder, factors_name

GPT2_XL = (6400, 1600)  # its down-projection
EDITS, FLOAT, ALLOWANCE = 10_000, 4, 1.1


@dataclass(frozen=True)
class Storage:
    """Which runs to measure."""

    runs: Positional[tuple[Path, ...]] = ()


class Sizes(NamedTuple):
    """Bytes of a run folder, by purpose."""

    updates: int  # how many there are
    bound: float  # 1.1 x 4 x sum over updates and matrices of rank (d_in + d_out)
    factors: int
    snapshots: int
    documents: int  # and figures
    lines: int  # of metrics.jsonl and journal.jsonl

    @property
    def lawful(self) -> bool:
        """Whether the factors keep to their bound."""
        return self.factors <= self.bound


def factor_bytes(shapes: Mapping[str, tuple[int, int]], rank: int = 1) -> int:
    """4 x rank x (d_in + d_out), summed over the matrices."""
    return sum(FLOAT * rank * (rows + columns) for rows, columns in shapes.values())


def whole_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """4 x d_in x d_out, summed over the matrices."""
    return sum(FLOAT * rows * columns for rows, columns in shapes.values())


def measure(path: Path) -> Sizes:
    """Counts the bytes of a run. Raises RunError for one of dense updates, which are kept as snapshots only."""
    folder = RunFolder.open(path)
    if not folder.updates or not folder.low_rank:
        raise RunError(f"{path} has no low-rank updates")
    bound = 0.0
    for chunk in folder.journal.chunks:
        with safe_open(path / factors_name(chunk.number), framework="numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        for name, (updates, first, second) in shapes.items():
            rank, size = (second, first) if name.endswith("/left") else (first, second)
            bound += ALLOWANCE * FLOAT * updates * rank * size
    by_room = {room: _bytes(path / room) for room in ("updates", "snapshots", "origin")}
    lines = sum((path / name).stat().st_size for name in ("metrics.jsonl", "journal.jsonl"))
    rest = _bytes(path) - sum(by_room.values()) - lines
    snapshots = by_room["snapshots"] + by_room["origin"]
    return Sizes(folder.updates, bound, by_room["updates"], snapshots, rest, lines)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def arithmetic() -> Table:
    """The costs of 10,000 edits of GPT2-XL."""
    table = Table(
        title=f"{EDITS:,} edits of GPT2-XL (down-projection {GPT2_XL[0]} x {GPT2_XL[1]}), rank 1, float32"
    )
    for name in ("layers", "factors an edit", "factors", "a matrix an edit", "whole matrices", "ratio"):
        table.add_column(name, justify="right")
    for layers in (1, 5):
        shapes = {f"layers.{layer}": GPT2_XL for layer in range(layers)}
        small, large = factor_bytes(shapes), whole_bytes(shapes)
        table.add_row(
            str(layers), f"{small / 1e3:.0f} kB", f"{EDITS * small / 1e9:.2f} GB", f"{large / 1e6:.2f} MB",
            f"{EDITS * large / 1e9:.1f} GB", f"{large / small:.0f}",
        )  # fmt: skip
    return table


def measured(paths: tuple[Path, ...]) -> tuple[Table, bool]:
    """The bytes of runs, and whether all keep to the law."""
    table = Table(title="Bytes of run folders")
    for name in (
        "run",
        "updates",
        "factors an edit",
        "bound",
        "lines an edit",
        "snapshots",
        "documents, figures",
    ):
        table.add_column(name, justify="left" if name == "run" else "right")
    sizes = [measure(path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        per_edit = (size.factors, size.bound, size.lines)
        table.add_row(
            path.name, str(size.updates), *(f"{part / size.updates:,.0f}" for part in per_edit),
            f"{size.snapshots:,}", f"{size.documents:,}",
        )  # fmt: skip
    return table, all(size.lawful for size in sizes)


def main(storage: Storage) -> None:
    """Prints both tables; exits with 1 where a run takes more than the law allows."""
    console = Console(width=120)
    console.print(arithmetic())
    if storage.runs:
        table, lawful = measured(storage.runs)
        console.print(table)
        if not lawful:
            raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Storage, description=__doc__))
