"""The way of a run's matrices through all of its updates, from the recorded factors."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxedit.diagnostics.leading import Leading
from jaxedit.diagnostics.lowrank import Captured, captured
from jaxedit.diagnostics.path import Path, Walked, alignment_share, begin, walk
from jaxedit.diagnostics.stacked import over_matrices
from jaxedit.errors import RunError
from jaxedit.pipeline.measured import Row
from jaxedit.pipeline.prepare import Report, quiet
from jaxedit.trajectory.replay import Trajectory
from jaxedit.types import LowRank

Columns = dict[str, Float[np.ndarray, "E"]]
"""By name, which `PATH_MEASURES` has with `path_` before it; an entry for each update."""


def path_rows(ways: Mapping[str, Columns]) -> Iterator[Row]:
    """Every entry of every path."""
    for where, columns in ways.items():
        for what, values in columns.items():
            for i, value in enumerate(values):
                yield Row(i + 1, "edited", where, "", "", f"path_{what}", float(value))


def path_of_run(
    found: Trajectory, tops: Mapping[str, Leading], last: int | None = None, report: Report = quiet
) -> dict[str, Columns]:
    """The way of every matrix through the updates of a run, from the recorded factors alone.

    `tops` are the leading triplets of the matrices before the first update, in whose subspaces shares of each update
    are looked for. A run rounds its matrices to float32 after every update, so that its norms differ from these by
    about 1e-7 of themselves. Updates that were refused are steps of nothing. Raises RunError where updates are dense.
    """
    if not found.folder.low_rank:
        raise RunError(f"{found.folder.path} keeps no factors: its updates are dense, and so is their path")
    last = found.steps if last is None else last
    first = found.at(0)
    walked: dict[str, Walked] = over_matrices(begin, first)
    follow = jax.jit(lambda *given: over_matrices(_follow, *given))
    parts: dict[str, list[tuple[Path, Captured]]] = {path: [] for path in first}
    for chunk in found.folder.journal.chunks:
        if chunk.first >= last:
            break
        counts = ~np.isin(np.arange(chunk.first, chunk.after), chunk.refused)
        factors = {
            path: LowRank(delta.left * counts[:, None, None].astype(np.float32), delta.right)
            for path, delta in found.folder.factors(chunk, found.like).items()
        }
        for path, (after, part) in follow(first, walked, factors, tops).items():
            walked[path] = after
            parts[path].append(jax.tree.map(lambda x: np.asarray(x)[: last - chunk.first], part))  # noqa: B023
        report("following the updates", min(chunk.after, last), last)
    return {path: _columns(ways) for path, ways in parts.items() if ways}


def _follow(
    first: Float[Array, "in out"], walked: Walked, updates: LowRank, top: Leading
) -> tuple[Walked, tuple[Path, Captured]]:
    after, way = walk(first, walked, updates)
    return after, (way, jax.vmap(lambda delta: captured(delta, top.left, top.right))(updates))


def _columns(parts: list[tuple[Path, Captured]]) -> Columns:
    way, shares = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    within = {f"step_in_{side}_subspace": values for side, values in shares._asdict().items()}
    return way._asdict() | {"alignment_share": np.asarray(alignment_share(way))} | within
