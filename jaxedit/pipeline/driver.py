"""The compiled program of a run's updates, and its recorded chunks run once more by it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.evaluation.edits import probe_scores
from jaxedit.linalg import frobenius
from jaxedit.parallel import on_one_device
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.placing import placed, placed_chunk
from jaxedit.pipeline.plan import Plan
from jaxedit.pipeline.prepare import Prepared
from jaxedit.trajectory.guard import Guard, Policy, guard_of
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.replay import Rerun
from jaxedit.trajectory.run import ApplyChunk, chunk_function
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import State


def guard_for(config: RunConfig, prepared: Prepared, policy: Policy | None = None) -> Guard:
    """The run's limits in the units of its matrices, which are those before its first update."""
    norms = {path: float(frobenius(matrix)) for path, matrix in prepared.params.edited.items()}
    limits = config.limits
    return guard_of(norms, policy or limits.policy, limits.edit, limits.total)


def apply_function(config: RunConfig, prepared: Prepared, guard: Guard, plan: Plan) -> ApplyChunk:
    """The compiled driver of this run."""
    model = prepared.checkpoint.model
    observe = functools.partial(probe_scores, model, room=plan.room) if config.score else None
    return chunk_function(prepared.editor, observe, guard)


def rerun_of(config: RunConfig, folder: RunFolder, prepared: Prepared, plan: Plan) -> Rerun:
    """Runs recorded chunks once more by the very program that the run used, stopping after any of their updates."""
    guard = guard_for(config, prepared, folder.journal.policy)
    apply = apply_function(config, prepared, guard, plan)

    def rerun(
        edited: dict[str, Array], state: State, chunk: Finished, count: int
    ) -> tuple[dict[str, Array], State]:
        planned = plan.planned(chunk.first, chunk.updates, chunk.shape)
        again = placed_chunk(
            planned.chunk._replace(active=applied(chunk, count, plan.length)), prepared.devices
        )
        copies = jax.tree.map(jnp.copy, placed(edited, state, prepared.devices))
        edited, state, _ = apply(copies[0], prepared.frozen, copies[1], again)
        return on_one_device((edited, state), prepared.devices)

    return rerun


def applied(chunk: Finished, count: int, length: int) -> Array:
    """Which of the first `count` updates of a recorded chunk the run applied, in an array of `length`.

    What was refused is taken from the journal: a chunk that was rolled back has nothing to refuse before its end, and
    the policy may have been another one then.
    """
    numbers = chunk.first + np.arange(length)
    return jnp.asarray((numbers < chunk.first + count) & ~np.isin(numbers, chunk.refused))


def when_needed(make: Callable[[], Rerun]) -> Rerun:
    """What `make` gives, made when a chunk is run again for the first time."""
    made = functools.cache(make)
    return lambda *given: made()(*given)
