"""The models of a run as they would be used: with what an editor does to its matrices once, at the end."""

from collections.abc import Iterable, Iterator

from jaxedit.pipeline.prepare import Prepared
from jaxedit.trajectory.replay import Matrices, Trajectory
from jaxedit.types import Params, State, as_they_are


def used(prepared: Prepared, matrices: Matrices, state: State) -> Matrices:
    """The matrices to use, were this the end of the sequence: after `Editor.finalize`."""
    return prepared.editor.finalize(Params(matrices, prepared.params.frozen), state).edited


def walk_used(prepared: Prepared, found: Trajectory, steps: Iterable[int]) -> Iterator[tuple[int, Matrices]]:
    """`Trajectory.walk`, each step's matrices as they would be used.

    What an editor does at the end may need its memory of that step, for which updates may have to be run once more.
    """
    if prepared.editor.finalize is as_they_are:
        yield from found.walk(steps)
        return
    for step in steps:
        yield step, used(prepared, *found.resumable(step))
