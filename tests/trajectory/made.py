"""Runs without a model: an editor that draws its updates, the real driver, the real writer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.linalg import added
from jaxedit.trajectory.guard import ANY_FINITE, Guard
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.replay import Trajectory
from jaxedit.trajectory.run import Chunk, chunk_function
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import Done, RunWriter, create
from jaxedit.types import EditInfo, Editor, LowRank, Params, Requests, State

SHAPES = {"layers.0.mlp.down.kernel": (6, 4), "layers.1.mlp.down.kernel": (6, 4)}
CHUNK, RANK = 3, 2
Matrices = dict[str, Array]


def drawn(low_rank: bool = True, bad: Sequence[int] = (), huge: Sequence[int] = ()) -> Editor:
    """Adds what it draws from the number of the case and from the sum of all numbers before, which it remembers.

    Cases in `bad` give NaN, cases in `huge` an update a thousand times as large.
    """

    def update(params: Params, state: State, requests: Requests) -> tuple[Params, State, EditInfo]:
        case = requests.case[0]
        scale = 0.1 * (1 + jnp.sin(state["sum"].astype(jnp.float32)))
        scale = jnp.where(jnp.isin(case, jnp.array([*huge, -9])), 1000.0, scale)
        scale = jnp.where(jnp.isin(case, jnp.array([*bad, -9])), jnp.nan, scale)
        deltas, edited = {}, {}
        for i, (path, matrix) in enumerate(params.edited.items()):
            key = jax.random.fold_in(jax.random.key(i), case)
            left = scale * jax.random.normal(key, (matrix.shape[0], RANK))
            delta = LowRank(left, jax.random.normal(jax.random.fold_in(key, 1), (RANK, matrix.shape[1])))
            deltas[path] = delta if low_rank else delta.left @ delta.right
            edited[path] = added(matrix, deltas[path])
        finite = jnp.stack([jnp.isfinite(w).all() for w in edited.values()]).all()
        metrics = {"scale": scale}
        return Params(edited, params.frozen), {"sum": state["sum"] + case}, EditInfo(deltas, metrics, finite)

    return Editor(lambda params: {"sum": jnp.zeros((), jnp.int32)}, update)


def requests(cases: Sequence[int]) -> Requests:
    """One fact an update, known by its number alone."""
    zeros = np.zeros((len(cases), 1, 1, 1), np.int32)
    return Requests(
        prefix=zeros, prefix_mask=zeros > 0, tail=zeros, tail_mask=zeros > 0, target=zeros[:, 0],
        target_mask=zeros[:, 0] > 0, predict_at=zeros, weight=np.ones((len(cases), 1), np.float32),
        case=np.array(cases, np.int32)[:, None],
    )  # fmt: skip


def start() -> Matrices:
    keys = jax.random.split(jax.random.key(7), len(SHAPES))
    return {
        path: jax.random.normal(key, shape) for key, (path, shape) in zip(keys, SHAPES.items(), strict=True)
    }


@dataclass
class Made:
    """A run, and what its matrices really were after every update."""

    folder: RunFolder
    live: list[Matrices]
    state: State

    def trajectory(self, rerun: Callable | None = None) -> Trajectory:
        return Trajectory(self.folder, start(), {"sum": jnp.zeros((), jnp.int32)}, rerun)


def watching(params: Params, _: object) -> dict[str, Array]:
    return params.edited


def new(path: Path, state: State | None = None) -> RunFolder:
    state = {"sum": jnp.zeros((), jnp.int32)} if state is None else state
    return create(path, {"config": {}, "environment": {"fingerprint": "f" * 64}}, "facts\n", start(), state)


def make(
    path: Path,
    updates: int,
    editor: Editor | None = None,
    guard: Guard = ANY_FINITE,
    dense_chunks: Sequence[int] = (),
) -> Made:
    """A run of that many updates, in chunks of `CHUNK`, ended with a summary."""
    made = grow(new(path), updates, editor, guard, dense_chunks)
    with RunWriter(made.folder) as writer:
        writer.end({"edits": updates})
    return Made(RunFolder.open(path), made.live, made.state)


def grow(
    folder: RunFolder,
    updates: int,
    editor: Editor | None = None,
    guard: Guard = ANY_FINITE,
    dense_chunks: Sequence[int] = (),
) -> Made:
    """Adds updates to a run that has none; of the chunks in `dense_chunks` the factors are not kept."""
    apply = chunk_function(editor or drawn(), watching, guard)
    edited, state = start(), {"sum": jnp.zeros((), jnp.int32)}
    live = [start()]
    with RunWriter(folder) as writer:
        for first in range(0, updates, CHUNK):
            cases = range(first, first + CHUNK)
            count = min(CHUNK, updates - first)
            chunk = Chunk(requests(cases), requests(cases), jnp.arange(CHUNK) < count)
            edited, state, steps = apply(edited, {}, state, chunk)
            kept = jax.tree.map(jnp.copy, (edited, state))
            steps = steps._replace(factors={}) if first // CHUNK in dense_chunks else steps
            lines = [f'{{"update": {first + i}}}\n' for i in range(count)]
            writer.append(Done(count, (1, 1, 1), steps._replace(observed={}), lines, *kept))
            live += [jax.tree.map(lambda x: x[i], steps.observed) for i in range(count)]  # noqa: B023
    return Made(RunFolder.open(folder.path), live, state)


def again(editor: Editor) -> Callable[[Matrices, State, Finished, int], tuple[Matrices, State]]:
    """Runs recorded chunks once more."""
    apply = chunk_function(editor, watching)

    def rerun(edited: Matrices, state: State, chunk: Finished, count: int) -> tuple[Matrices, State]:
        cases = range(chunk.first, chunk.first + CHUNK)
        copies = jax.tree.map(jnp.copy, (edited, state))
        one = Chunk(requests(cases), requests(cases), jnp.arange(CHUNK) < count)
        return apply(copies[0], {}, copies[1], one)[:2]

    return rerun
