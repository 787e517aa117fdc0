"""The sequence driver: one compiled scan applies a chunk of updates, measuring after every one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.linalg import dense, frobenius
from jaxedit.types import EditInfo, Editor, LowRank, Params, Probes, Requests, State

Observe = Callable[[Params, Any], dict[str, Array]]
"""Measures the model right after an update, on what the scan hands it for that update."""


class Step(NamedTuple):
    """The account of one update; after a scan every leaf has a leading axis of E updates."""

    norm: dict[str, Float[Array, ""]]  # ||W||_F of every edited matrix after the update
    delta_norm: dict[str, Float[Array, ""]]  # ||Delta||_F
    finite: Bool[Array, ""]
    metrics: dict[str, Array]  # the editor's own figures
    observed: dict[str, Array]  # what `observe` measured
    factors: dict[str, LowRank]  # the update itself where it is low rank


class Chunk(NamedTuple):
    """E consecutive updates of B facts: leaves have leading axes [E, B]."""

    requests: Requests
    probes: Probes | None


ApplyChunk = Callable[
    [dict[str, Array], dict[str, Array], State, Chunk], tuple[dict[str, Array], State, Step]
]


def chunk_function(editor: Editor, observe: Observe | None = None) -> ApplyChunk:
    """Compiles `(edited, frozen, state, chunk) -> (edited, state, steps)`.

    `edited` and `state` are donated: they are updated in place and must not be used again by the caller.
    The frozen weights are read where they are. Nothing is sent to the host before the chunk ends. It compiles
    once for every shape of chunk.
    """

    def apply(edited, frozen, state, chunk: Chunk):
        def body(carry, one: Chunk):
            params, new_state, info = editor.update(Params(carry[0], frozen), carry[1], one.requests)
            observed = {} if observe is None or one.probes is None else observe(params, one.probes)
            return (params.edited, new_state), _account(params, info, observed)

        (edited, state), steps = jax.lax.scan(body, (edited, state), chunk)
        return edited, state, steps

    return jax.jit(apply, donate_argnums=(0, 2))


def _account(params: Params, info: EditInfo, observed: dict[str, Array]) -> Step:
    return Step(
        norm={path: frobenius(matrix) for path, matrix in params.edited.items()},
        delta_norm={path: frobenius(dense(delta)) for path, delta in info.delta.items()},
        finite=info.finite,
        metrics=info.metrics,
        observed=observed,
        factors={path: delta for path, delta in info.delta.items() if isinstance(delta, LowRank)},
    )


def matrix_norms(params: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    """||W||_F of every MLP matrix, edited or not."""
    return jax.jit(lambda chosen: jax.tree.map(frobenius, chosen))(
        {path: w for path, w in params.items() if ".mlp." in path and path.endswith("kernel")}
    )


def stack(batches: list[Any]) -> Any:
    """Leaves of equal-shaped batches, stacked along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
