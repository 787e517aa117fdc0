"""Runs of random updates: the true driver and the true writer, and an editor that adds what it is given."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.linalg import added
from jaxedit.report.figures import write_figures
from jaxedit.report.record import read_run
from jaxedit.trajectory.files import write_sums
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.replay import Rerun, Trajectory
from jaxedit.trajectory.run import Chunk, Step, chunk_function
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import Done, RunWriter, create
from jaxedit.types import EditInfo, Editor, LowRank, Params, State

Matrices = dict[str, Array]
Shapes = Mapping[str, tuple[int, int]]
SHAPES: Shapes = {"layers.0.mlp.down.kernel": (12, 6), "layers.1.mlp.down.kernel": (12, 6)}
SIZE = 0.01  # of an update's factors


def adding(remembers: bool = True, dense: bool = False) -> Editor:
    """An editor whose requests are the factors to add; it remembers the sum of left left^T of each matrix."""

    def init(params: Params) -> State:
        return {path: jnp.zeros((len(w), len(w))) for path, w in params.edited.items()} if remembers else None

    def update(params: Params, state: State, requests: Any) -> tuple[Params, State, EditInfo]:
        factors: dict[str, LowRank] = requests
        edited = {path: added(params.edited[path], delta) for path, delta in factors.items()}
        if remembers:
            state = {path: state[path] + delta.left @ delta.left.T for path, delta in factors.items()}
        given = {path: delta.left @ delta.right if dense else delta for path, delta in factors.items()}
        return Params(edited, params.frozen), state, EditInfo(given, {}, jnp.asarray(True))

    return Editor(init, update, remembers)


def first_matrices(shapes: Shapes, seed: int = 0) -> Matrices:
    """Random matrices to begin with."""
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


def random_factors(rng: np.random.Generator, shapes: Shapes, updates: int, rank: int) -> dict[str, LowRank]:
    """Factors of some updates, leading axis `updates`."""

    def draw(*shape: int) -> Any:
        return (SIZE * rng.normal(size=shape)).astype(np.float32)

    return {
        path: LowRank(draw(updates, rows, rank), draw(updates, rank, columns))
        for path, (rows, columns) in shapes.items()
    }


def new_run(path: Path, edited: Matrices, state: State, updates: int) -> RunFolder:
    """A run folder before the first update."""
    documents: dict[str, dict[str, Any]] = {
        "config": {"editor": "adding", "count": updates},
        "environment": {"fingerprint": "0" * 64},
    }
    facts = "".join(json.dumps({"id": f"fact-{i}"}) + "\n" for i in range(updates))
    return create(path, documents, facts, edited, state)


def lines_of(steps: Step, first: int, updates: int) -> Iterator[str]:
    """Lines of metrics.jsonl as a run has them, without scores."""
    for i in range(updates):
        norms = {
            name: {path: float(norm[i]) for path, norm in getattr(steps, name).items()}
            for name in ("norm", "delta_norm")
        }
        about = {"update": first + i, "facts": [f"fact-{first + i}"], "applied": True, "refused": []}
        yield json.dumps(about | norms | {"metrics": {}, "scores": {}}) + "\n"


class Synthetic(NamedTuple):
    """A run that was written, and what it came to."""

    path: Path
    truth: list[dict[str, Any]]  # the matrices after 0, 1, ... chunks, as the driver had them, in NumPy
    state: State  # the editor's first one
    rerun: Rerun

    def steps(self, path: Path | None = None) -> Trajectory:
        """The steps of the run, or of a copy of its folder."""
        return Trajectory(RunFolder.open(path or self.path), self.truth[0], self.state, self.rerun)


def write_run(
    path: Path,
    updates: int = 20,
    chunk: int = 3,
    shapes: Shapes = SHAPES,
    rank: int = 1,
    seed: int = 0,
    remembers: bool = True,
    dense: bool = False,
    finished: bool = True,
    keep: bool = True,
) -> Synthetic:
    """Writes a run of random updates; without `keep` the truth has only the matrices before the first."""
    editor = adding(remembers, dense)
    apply = chunk_function(editor)

    def requests(first: int, count: int) -> Chunk:
        drawn: Any = random_factors(np.random.default_rng((seed, first)), shapes, chunk, rank)
        return Chunk(drawn, None, jnp.arange(chunk) < count)

    def rerun(edited: Matrices, state: State, entry: Finished, count: int) -> tuple[Matrices, State]:
        edited, state = jax.tree.map(jnp.copy, (edited, state))
        return apply(edited, {}, state, requests(entry.first, count))[:2]

    edited = first_matrices(shapes, seed)
    state = editor.init(Params(edited, {}))
    run = Synthetic(path, [jax.tree.map(np.array, edited)], jax.tree.map(np.array, state), rerun)
    with RunWriter(new_run(path, edited, state, updates)) as writer:
        for first in range(0, updates, chunk):
            count = min(chunk, updates - first)
            edited, state, steps = apply(edited, {}, state, requests(first, count))
            kept = jax.tree.map(jnp.copy, (edited, state))
            writer.append(Done(count, (1, 1, 1), steps, lines_of(steps, first, count), *kept))
            if keep:
                run.truth.append(jax.tree.map(np.array, edited))
        if finished:
            norm = {path: float(np.linalg.norm(w)) for path, w in run.truth[0].items()}
            writer.end({"edits": updates, "unedited": {}, "final": {"S": 0.5}, "unedited_norm": norm})
    return run


def draw_figures(path: Path) -> None:
    """Figures and their checksums, as the command line adds them to a finished run."""
    write_figures([read_run(path)], path / "figures")
    write_sums(path / "figures")
