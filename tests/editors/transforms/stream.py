"""Two small editors on one matrix, without a model, so that laws of transforms can be told exactly.

`GIVEN` and `GIVEN_LOW_RANK` write the stream's updates all at once, as gradient editors do. `RIDGE` is the closed
form with history on the stream's keys and values, layer after layer as closed forms do. All numbers come with the
frozen parameters, so one compilation serves every stream.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.editors.closed_form import preservation, remember, solve, write
from jaxedit.linalg import added, frobenius
from jaxedit.types import Delta, EditInfo, Editor, LowRank, Params, Requests, Rewrite, Site, Solved
from tests.test_linalg import spd

D_IN, D_OUT, FACTS, STEPS, LAM = 24, 10, 3, 5, 3.0
PATH = "layers.0.mlp.down.kernel"
Reached = tuple[Params, Any, EditInfo]


class Stream:
    """A matrix [in, out] and what is written to it: STEPS batches of FACTS keys, values, and updates."""

    def __init__(self, seed: int = 0, size: float = 1.0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return jnp.asarray(rng.standard_normal(shape), jnp.float32)

        self.weight = normal(D_IN, D_OUT) / D_IN**0.5
        self.moment = jnp.asarray(spd(rng, D_IN, 1e3), jnp.float32)
        self.keys, self.values = normal(STEPS, FACTS, D_IN), normal(STEPS, FACTS, D_OUT)
        self.updates = LowRank(0.05 * size * normal(STEPS, D_IN, FACTS), normal(STEPS, FACTS, D_OUT))
        self.dense_updates = jnp.einsum("tir,tro->tio", *self.updates, precision="highest")

    @property
    def params(self) -> Params:
        frozen = {"keys": self.keys, "values": self.values, "moment": self.moment}
        frozen |= {"dense": self.dense_updates, "left": self.updates.left, "right": self.updates.right}
        return Params({PATH: self.weight}, frozen)

    @property
    def moments(self) -> dict[str, Array]:
        return {PATH: self.moment}


def requests(weight: Any = (1.0,) * FACTS) -> Requests:
    """Requests of which these editors read the weights alone."""
    nothing = jnp.zeros((len(weight), 0))
    weight = jnp.asarray(weight, jnp.float32)
    return Requests(*[nothing] * 7, weight, jnp.zeros(len(weight), jnp.int32))


def _given(updates: Callable[[dict[str, Array]], Delta]) -> Editor:
    """Adds update t at step t; the state is t."""

    def update(params: Params, step: Array, requests: Requests) -> Reached:
        active = requests.weight.sum() > 0
        delta = jax.tree.map(lambda x: x[step] * active, updates(params.frozen))
        weight = added(params.edited[PATH], delta)
        info = EditInfo({PATH: delta}, {}, jnp.isfinite(frobenius(weight)))
        return Params({PATH: weight}, params.frozen), step + active, info

    return Editor(lambda params: jnp.zeros((), jnp.int32), update)


GIVEN = _given(lambda frozen: frozen["dense"])
GIVEN_LOW_RANK = _given(lambda frozen: LowRank(frozen["left"], frozen["right"]))


def _ridge(memory: bool) -> Editor:
    """MEMIT's solution for batch t at step t; the state is what is preserved, and t."""

    def layerwise(params: Params, state: Any, requests: Requests, rewrite: Rewrite, carry: Any) -> Any:
        kept, step = state
        weight, real = params.edited[PATH], requests.weight[:, None]
        keys, values = params.frozen["keys"][step] * real, params.frozen["values"][step] * real
        residual = values - jnp.matmul(keys, weight, precision="highest")
        solved = solve(kept, keys)
        delta = write(solved, keys, residual, 1.0, requests.weight)
        written, carry = rewrite(Site(PATH, weight, Solved(keys, residual, delta)), delta, carry)
        weight = added(weight, written)
        kept = remember(kept, keys, solved) if memory else kept
        info = EditInfo({PATH: written}, {}, jnp.isfinite(frobenius(weight)))
        state = kept, step + (requests.weight.sum() > 0)
        return Params({PATH: weight}, params.frozen), state, info, carry

    def update(params: Params, state: Any, requests: Requests) -> Reached:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    def init(params: Params) -> Any:
        return preservation(params.frozen["moment"], LAM), jnp.zeros((), jnp.int32)

    return Editor(init, update, layerwise=layerwise)


RIDGE, RIDGE_WITHOUT_HISTORY = _ridge(memory=True), _ridge(memory=False)


@functools.cache
def compiled(editor: Editor) -> Callable[[Params, Any, Requests], Reached]:
    """The editor's update, compiled once for all tests."""
    return jax.jit(editor.update)


def sequence(editor: Editor, stream: Stream, steps: int = STEPS) -> list[Reached]:
    """Parameters, state and account after each update."""
    update, params, reached = compiled(editor), stream.params, []
    state = editor.init(params)
    for _ in range(steps):
        params, state, info = update(params, state, requests())
        reached.append((params, state, info))
    assert update._cache_size() == 1  # type: ignore[attr-defined]
    return reached


def weights(reached: list[Reached]) -> list[np.ndarray]:
    """The matrix after each update, float64."""
    return [np.asarray(params.edited[PATH], np.float64) for params, _, _ in reached]
