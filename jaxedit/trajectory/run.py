"""The sequence driver: one compiled scan applies a chunk of updates, measuring after every one."""

import functools
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.linalg import added, change_norm, frobenius
from jaxedit.parallel import ONE_DEVICE, Devices
from jaxedit.trajectory.guard import ANY_FINITE, Guard, refusal
from jaxedit.types import EditInfo, Editor, LowRank, Params, Probes, Requests, State

Observe = Callable[[Params, Any], dict[str, Array]]
"""Measures the model right after an update, on what the scan hands it for that update."""
T = TypeVar("T")


class Carry(NamedTuple):
    """What one update of a chunk hands to the next."""

    edited: dict[str, Array]
    norm: dict[str, Float[Array, ""]]  # ||W||_F of each edited matrix
    state: State
    halted: Bool[Array, ""]  # whether a refused update has ended the chunk


class Step(NamedTuple):
    """The account of one update; after a scan every leaf has a leading axis of E updates."""

    norm: dict[str, Float[Array, ""]]  # ||W||_F of every edited matrix after the update
    delta_norm: dict[str, Float[Array, ""]]  # ||Delta||_F as the editor computed it, applied or not
    applied: Bool[Array, ""]  # False where the guard refused it, or one before it in its chunk
    refused: Int[Array, ""]  # the guard's reasons, 0 for none
    metrics: dict[str, Array]  # the editor's own figures
    observed: dict[str, Array]  # what `observe` measured
    factors: dict[str, LowRank]  # what was added to each matrix, where the update is low rank


class Chunk(NamedTuple):
    """E consecutive updates of B facts: leaves have leading axes [E, B]."""

    requests: Requests
    probes: Probes | None
    active: Bool[Array, "E"] | None = None  # which updates to apply; all for None


ApplyChunk = Callable[
    [dict[str, Array], dict[str, Array], State, Chunk], tuple[dict[str, Array], State, Step]
]


def chunk_function(editor: Editor, observe: Observe | None = None, guard: Guard = ANY_FINITE) -> ApplyChunk:
    """Compiles `(edited, frozen, state, chunk) -> (edited, state, steps)`.

    `edited` and `state` are donated: they are updated in place and must not be used again by the caller.
    The frozen weights are read where they are. Nothing is sent to the host before the chunk ends. It compiles
    once for every shape of chunk.
    """
    step, settle = _step(editor, observe, guard), _settle(editor, guard)

    def apply(edited, frozen, state, chunk: Chunk):
        given = (chunk._replace(active=None), _active(chunk, 1))
        start = Carry(edited, _norms(edited), state, jnp.zeros((), bool))
        end, steps = jax.lax.scan(functools.partial(step, frozen), start, given)
        return settle(start, end, steps)

    return jax.jit(apply, donate_argnums=(0, 2))


def many_function(
    editor: Editor,
    observe: Observe | None = None,
    guard: Guard = ANY_FINITE,
    devices: Devices = ONE_DEVICE,
) -> ApplyChunk:
    """`chunk_function` for M sequences that know nothing of each other: all leaves but the frozen lead with M.

    Seeds, orders, fact sets; frozen weights are read once for all. `devices` divide the sequences, whose number
    must be a multiple of `devices.parts`. All M batches of an update run at the size that the largest needs,
    and until none of their facts goes on.
    """
    step, settle = _step(editor, observe, guard), jax.vmap(_settle(editor, guard))

    def work(frozen, sequences):
        edited, state, chunk = sequences
        given = jax.tree.map(_turned, (chunk._replace(active=None), _active(chunk, 2)))
        start = Carry(edited, jax.vmap(_norms)(edited), state, jnp.zeros(given[1].shape[1], bool))
        # The scan is outermost: vmapped as a whole, float64 solves in it would be batched as float32.
        end, steps = jax.lax.scan(jax.vmap(functools.partial(step, frozen)), start, given)
        return settle(start, end, jax.tree.map(_turned, steps))

    def apply(edited, frozen, state, chunk: Chunk):
        return devices.run(work, frozen, (edited, state, chunk))

    return jax.jit(apply, donate_argnums=(0, 2))


def _turned(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _active(chunk: Chunk, axes: int) -> Bool[Array, "..."]:
    if chunk.active is not None:
        return chunk.active
    return jnp.ones(jax.tree.leaves(chunk.requests)[0].shape[:axes], bool)


def _step(editor: Editor, observe: Observe | None, guard: Guard) -> Callable[..., tuple[Carry, Step]]:
    """One update: `(frozen, carry, (chunk, wanted)) -> (carry, step)`."""

    def step(frozen: dict[str, Array], carry: Carry, one: tuple[Chunk, Array]):
        chunk, wanted = one
        params, state, info = editor.update(Params(carry.edited, frozen), carry.state, chunk.requests)
        delta_norm = {path: change_norm(delta) for path, delta in info.delta.items()}
        norm = _norms(params.edited)
        code = jnp.where(wanted, refusal(guard, info.finite, norm, delta_norm), 0)
        halted = carry.halted | ((code > 0) & (guard.policy != "skip"))
        applied = wanted & (code == 0) & ~halted
        edited, norm = choose(applied, (params.edited, norm), (carry.edited, carry.norm))
        state = choose(applied, state, carry.state) if editor.remembers else state
        params = Params(edited, frozen)
        account = Step(
            norm=norm,
            delta_norm=delta_norm,
            applied=applied,
            refused=code,
            metrics=info.metrics,
            observed={} if observe is None or chunk.probes is None else observe(params, chunk.probes),
            factors=factors_of(info, applied),
        )
        return Carry(edited, norm, state, halted), account

    return step


def _settle(
    editor: Editor, guard: Guard
) -> Callable[[Carry, Carry, Step], tuple[dict[str, Array], State, Step]]:
    """What is left of a chunk at its end: `(start, end, steps) -> (edited, state, steps)`."""

    def settle(start: Carry, end: Carry, steps: Step) -> tuple[dict[str, Array], State, Step]:
        if guard.policy != "rollback":
            return end.edited, end.state, steps
        kept = ~end.halted
        before = jax.tree.map(lambda norm: jnp.broadcast_to(norm, steps.applied.shape), start.norm)
        steps = steps._replace(
            applied=steps.applied & kept,
            norm=choose(kept, steps.norm, before),
            factors=choose(kept, steps.factors, jax.tree.map(jnp.zeros_like, steps.factors)),
        )
        state = choose(kept, end.state, start.state) if editor.remembers else end.state
        return choose(kept, end.edited, start.edited), state, steps

    return settle


def _norms(matrices: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    return {path: frobenius(matrix) for path, matrix in matrices.items()}


def factors_of(info: EditInfo, applied: Bool[Array, ""]) -> dict[str, LowRank]:
    """The low-rank changes; zero where the update is not applied."""
    found = {path: delta for path, delta in info.delta.items() if isinstance(delta, LowRank)}
    return choose(applied, found, jax.tree.map(jnp.zeros_like, found))


def choose(condition: Bool[Array, ""], yes: T, no: T) -> T:
    """One of two pytrees of equal structure, by a traced condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


@jax.jit
def replayed(
    edited: dict[str, Array], factors: dict[str, LowRank], applied: Bool[Array, "E"]
) -> dict[str, Array]:
    """Matrices after E recorded updates, to the bit what the driver made of them; `factors` lead with E."""

    def body(edited: dict[str, Array], one: tuple[dict[str, LowRank], Array]):
        deltas, wanted = one
        after = {path: added(edited[path], delta) for path, delta in deltas.items()}
        return edited | choose(wanted, after, {path: edited[path] for path in after}), None

    return jax.lax.scan(body, edited, (factors, applied))[0]


def matrix_norms(params: dict[str, Array], edited: Container[str]) -> dict[str, Float[Array, ""]]:
    """||W||_F of every MLP matrix and of all other matrices that are edited."""
    chosen = {
        path: w
        for path, w in params.items()
        if w.ndim == 2 and (path in edited or (".mlp." in path and path.endswith("kernel")))
    }
    return jax.jit(lambda chosen: jax.tree.map(frobenius, chosen))(chosen)


def stack(batches: list[Any]) -> Any:
    """Leaves of equal-shaped batches, stacked along a new leading axis; those on the host stay there."""

    def together(*leaves: Any) -> Any:
        # An operation on a device would wait there for the chunk that runs.
        hosted = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        return np.stack(leaves) if hosted else jnp.stack(leaves)

    return jax.tree.map(together, *batches)
