"""Any step of a finished or stopped run again: its matrices, the change between two steps, edits taken out."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxedit.digests import fingerprint
from jaxedit.errors import RunError
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.run import replayed
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import LowRank, State

Matrices = dict[str, Array]
Rerun = Callable[[Matrices, State, Finished, int], tuple[Matrices, State]]
"""Runs the first so many updates of a chunk once more, from the matrices and the state before it."""


class Trajectory:
    """The steps 0 .. `steps` of a run; step t is the model after t updates.

    `like` are the edited matrices, or their shapes and types; `state` is the editor's state in the same way.
    Low-rank updates are added up from the nearest snapshot, to the bit what the run had. Dense ones are run
    once more from there by `rerun`: to the bit too on the same machine and versions.
    """

    def __init__(
        self, folder: RunFolder, like: Mapping[str, Array], state: State = None, rerun: Rerun | None = None
    ):
        self.folder, self.like = folder, dict(like)
        self._state, self._rerun = state, rerun

    @property
    def steps(self) -> int:
        """How many updates are finished."""
        return self.folder.updates

    def at(self, step: int) -> Matrices:
        """The edited matrices after `step` updates.

        Raises RunError for a step that the run does not have, and where the files that lead there are damaged.
        """
        self.folder.require_step(step)
        if not self.folder.low_rank:
            return self.resumable(step)[0]
        return self._forward(*self._nearest(step), step)

    def walk(self, steps: Iterable[int]) -> Iterator[tuple[int, Matrices]]:
        """Several steps, ascending, each reached from the one before."""
        now: tuple[int, Matrices] | None = None
        for step in steps:
            self.folder.require_step(step)
            if now is None or not self.folder.low_rank or step < now[0]:
                now = step, self.at(step)
            else:
                now = step, self._forward(*now, step)
            yield now

    def change(self, start: int, stop: int) -> dict[str, LowRank | Float[Array, "in out"]]:
        """What updates `start` .. `stop - 1` added to each matrix: factors side by side, or a dense difference."""
        self.folder.require_step(start)
        self.folder.require_step(stop)
        if stop < start:
            raise RunError(f"a change goes from an earlier to a later step, not from {start} to {stop}")
        if not self.folder.low_rank:
            before, after = self.at(start), self.at(stop)
            return {path: after[path] - before[path] for path in after}
        parts = [self._factors(chunk, start, stop, ())[0] for chunk in self._between(start, stop)]
        return {
            path: LowRank(
                jnp.concatenate([flat_left(part[path].left) for part in parts], axis=1)
                if parts
                else jnp.zeros((matrix.shape[0], 0)),
                jnp.concatenate([flat_right(part[path].right) for part in parts], axis=0)
                if parts
                else jnp.zeros((0, matrix.shape[1])),
            )
            for path, matrix in self.like.items()
        }

    def without(self, updates: Collection[int]) -> Matrices:
        """The last step's matrices with some updates left out: all others as they were, added up in their order.

        Exact in that sense; where only the last updates are left out, to the bit the step before them. It is
        not what a run without these edits would have come to: later edits were computed on a model that held
        them. Dense updates are subtracted, to rounding.
        """
        if strangers := sorted(set(updates) - set(range(self.steps))):
            raise RunError(
                f"the run has no update {strangers[0]}: there are {self.steps}, from 0 to {self.steps - 1}"
            )
        first = min(updates, default=self.steps)
        if set(updates) == set(range(first, self.steps)):
            return self.at(first)
        if self.folder.low_rank:
            return self._forward(first, self.at(first), self.steps, updates)
        result = self.at(self.steps)
        for update in sorted(updates):
            (_, before), (_, after) = self.walk((update, update + 1))
            result = {path: result[path] - (after[path] - before[path]) for path in result}
        return result

    def resumable(self, step: int) -> tuple[Matrices, State]:
        """Matrices and the editor's state after `step` updates: all that a run needs to go on from there."""
        self.folder.require_step(step)
        edited, state, begun = self._begun(step)
        for chunk in self.folder.journal.chunks[begun:]:
            if chunk.first >= step:
                break
            edited, state = self._once_more(edited, state, chunk, step)
            if chunk.after <= step:
                self._compare(edited, chunk, "running the updates once more gives")
        return edited, state

    def differences(self) -> list[str]:
        """Chunks after which the updates do not lead to the matrices that the run had; empty is good.

        Recorded factors are added up. Dense updates are not kept, and are computed once more.
        """
        problems, low_rank = [], self.folder.low_rank
        what = "the factors lead to" if low_rank else "running the updates once more gives"
        now, state, _ = self._begun(0)
        for chunk in self.folder.journal.chunks:
            if low_rank:
                now = self._forward(chunk.first, now, chunk.after, check=False)
            else:
                now, state = self._once_more(now, state, chunk, chunk.after)
            try:
                self._compare(now, chunk, what)
            except RunError as error:
                problems.append(str(error))
        return problems

    def _once_more(
        self, edited: Matrices, state: State, chunk: Finished, step: int
    ) -> tuple[Matrices, State]:
        """The chunk's updates up to a step, computed again."""
        if self._rerun is None:
            raise RunError(
                f"{self.folder.path} keeps dense updates, or an editor's memory, at some steps only; step "
                f"{step} has to be run once more, with the model and its editor (jaxedit.pipeline.trajectory)"
            )
        return self._rerun(edited, state, chunk, min(step, chunk.after) - chunk.first)

    def _nearest(self, step: int) -> tuple[int, Matrices]:
        """The last good snapshot up to a step."""
        problem: RunError | None = None
        for number in reversed(self.folder.snapshots()):
            after = self.folder.journal.chunks[number - 1].after if number else 0
            if after <= step:
                try:
                    return after, self.folder.restore(number, "edited", self.like)
                except RunError as error:
                    problem = problem or error
        raise problem or RunError(f"{self.folder.path} has no snapshot to start from: they were removed")

    def _begun(self, step: int) -> tuple[Matrices, State, int]:
        """Matrices, state and number of chunks at the last good snapshot up to a step that has both."""
        problem: RunError | None = None
        for chunks in self._whole(step):
            start = self.folder.journal.chunks[chunks - 1].after if chunks else 0
            try:
                low_rank = self.folder.low_rank
                edited = self.at(start) if low_rank else self.folder.restore(chunks, "edited", self.like)
                remembered = bool(self.folder.fingerprint(chunks, "state"))
                state = self.folder.restore(chunks, "state", self._state) if remembered else self._state
                return edited, state, chunks
            except RunError as error:
                problem = problem or error
                if self._rerun is None:
                    break
        raise problem or RunError(f"{self.folder.path} has no snapshot to start from: they were removed")

    def _whole(self, step: int) -> list[int]:
        """After how many chunks, up to a step, there is all that `resumable` begins with; the last one first."""
        remembers = bool(self.folder.fingerprint(0, "state"))
        chunks = self.folder.journal.chunks
        there = set(self.folder.snapshots("state" if remembers else "edited"))
        if self.folder.low_rank and not remembers:
            there |= set(range(len(chunks) + 1))
        return sorted((n for n in there if (chunks[n - 1].after if n else 0) <= step), reverse=True)

    def _between(self, start: int, stop: int) -> list[Finished]:
        return [c for c in self.folder.journal.chunks if c.first < stop and c.after > start and stop > start]

    def _factors(
        self, chunk: Finished, start: int, stop: int, left_out: Collection[int]
    ) -> tuple[dict[str, LowRank], np.ndarray]:
        """A chunk's factors, zero outside of `start .. stop`, and which of its updates count."""
        numbers = np.arange(chunk.first, chunk.after)
        counts = (numbers >= start) & (numbers < stop) & ~np.isin(numbers, [*chunk.refused, *left_out])
        factors = self.folder.factors(chunk, self.like)
        masked = {
            path: LowRank(delta.left * counts[:, None, None].astype(np.float32), delta.right)
            for path, delta in factors.items()
        }
        return masked, counts

    def _forward(
        self, step: int, edited: Matrices, stop: int, left_out: Collection[int] = (), check: bool = True
    ) -> Matrices:
        for chunk in self._between(step, stop):
            factors, counts = self._factors(chunk, step, stop, left_out)
            edited = replayed(edited, factors, counts)
            if check and chunk.after == stop and not left_out:
                self._compare(edited, chunk, "the factors lead to")
        return jax.tree.map(jnp.asarray, edited)

    def _compare(self, edited: Matrices, chunk: Finished, what: str) -> None:
        if fingerprint(edited) != chunk.edited:
            raise RunError(
                f"after update {chunk.after - 1} {what} other matrices than the run had. The machine or its "
                f"versions are others, or a snapshot before was altered: `jaxedit verify {self.folder.path}` tells."
            )


def flat_left(left: Float[Array, "E in r"]) -> Float[Array, "in E*r"]:
    """Factors of several updates side by side."""
    return jnp.moveaxis(jnp.asarray(left), 0, 1).reshape(left.shape[1], -1)


def flat_right(right: Float[Array, "E r out"]) -> Float[Array, "E*r out"]:
    """Factors of several updates one below the other."""
    return jnp.asarray(right).reshape(-1, right.shape[-1])
