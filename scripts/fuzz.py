"""Feeds hostile files to everything that reads files; only documented errors may come out.

    python scripts/fuzz.py [--cases 20000] [--seed 0] [--targets "fact files" journals] [--json FILE]

Cases are drawn by hypothesis: good files with parts replaced, removed, renamed, flipped or cut, and made-up
ones. A case fails that raises anything but a JaxeditError, takes minutes, or holds more than 100 MiB.
"""

import json
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS


@dataclass(frozen=True)
class Fuzz:
    """How much to try."""

    cases: int = 20_000
    """In all, split over the targets."""
    seed: int = 0
    targets: tuple[str, ...] = tuple(TARGETS)
    json: Path | None = None


def main(options: Fuzz) -> None:
    """Prints the first failing case of each target, and a table; exits with 1 where there was one."""
    table = Table(title=f"{options.cases} hostile inputs, seed {options.seed}")
    for name in ("target", "cases", "refused", "read", "s"):
        table.add_column(name, justify="left" if name == "target" else "right")
    shares = sum(TARGETS[name].share for name in options.targets)
    rows: list[tuple[Any, ...]] = []
    failed = []
    for name in options.targets:
        cases = -(-options.cases * TARGETS[name].share // shares)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            try:
                count = fuzz(TARGETS[name], Path(place), cases, options.seed)
            except Exception:
                traceback.print_exc()
                failed.append(name)
                continue
        rows.append((name, count.cases, count.refused, count.cases - count.refused, time.monotonic() - start))
        print(f"{name}: {count.cases} cases", file=sys.stderr)
    if rows:
        columns = list(zip(*rows, strict=True))[1:]
        rows.append(("all", *map(sum, columns)))
    for name, *figures, seconds in rows:
        table.add_row(name, *map(str, figures), f"{seconds:.0f}")
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Fuzz, description=__doc__))
