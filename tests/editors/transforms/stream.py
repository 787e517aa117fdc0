"""Two small editors on one matrix, without a model, so that laws of transforms can be told exactly.

`given` writes updates it was handed, dense or low-rank, all at once as gradient editors do. `ridge` is the
closed form with history on given keys and values, layer after layer as closed forms do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.editors.closed_form import preservation, remember, solve, write
from jaxedit.linalg import dense, frobenius
from jaxedit.types import Delta, EditInfo, Editor, LowRank, Params, Requests, Rewrite, Site, Solved
from tests.test_linalg import spd

D_IN, D_OUT, FACTS, STEPS = 24, 10, 3, 5
PATH = "layers.0.mlp.down.kernel"
Reached = tuple[Params, Any, EditInfo]


class Stream:
    """A matrix [in, out] and what is written to it: STEPS batches of FACTS keys, values, and updates."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return jnp.asarray(rng.standard_normal(shape), jnp.float32)

        self.weight = normal(D_IN, D_OUT) / D_IN**0.5
        self.moment = jnp.asarray(spd(rng, D_IN, 1e3), jnp.float32)
        self.keys, self.values = normal(STEPS, FACTS, D_IN), normal(STEPS, FACTS, D_OUT)
        self.updates = LowRank(0.05 * normal(STEPS, D_IN, FACTS), normal(STEPS, FACTS, D_OUT))

    @property
    def params(self) -> Params:
        return Params({PATH: self.weight}, {})

    @property
    def moments(self) -> dict[str, Array]:
        return {PATH: self.moment}

    @property
    def dense_updates(self) -> Array:
        return jnp.einsum("tir,tro->tio", *self.updates, precision="highest")


def requests(weight: Any = (1.0,) * FACTS) -> Requests:
    """Requests of which these editors read the weights alone."""
    nothing = jnp.zeros((len(weight), 0))
    weight = jnp.asarray(weight, jnp.float32)
    return Requests(*[nothing] * 7, weight, jnp.zeros(len(weight), jnp.int32))


def given(updates: Delta) -> Editor:
    """Adds update t at step t; the state is t."""

    def update(params: Params, step: Array, requests: Requests) -> Reached:
        active = requests.weight.sum() > 0
        delta = jax.tree.map(lambda x: x[step] * active, updates)
        weight = params.edited[PATH] + dense(delta)
        info = EditInfo({PATH: delta}, {}, jnp.isfinite(frobenius(weight)))
        return Params({PATH: weight}, params.frozen), step + active, info

    return Editor(lambda params: jnp.zeros((), jnp.int32), update)


def ridge(stream: Stream, lam: float = 1.0, memory: bool = True) -> Editor:
    """MEMIT's solution for batch t at step t; the state is what is preserved, and t."""

    def layerwise(params: Params, state: Any, requests: Requests, rewrite: Rewrite, carry: Any) -> Any:
        kept, step = state
        weight, real = params.edited[PATH], requests.weight[:, None]
        keys = stream.keys[step] * real
        residual = stream.values[step] * real - jnp.matmul(keys, weight, precision="highest")
        solved = solve(kept, keys)
        delta = write(solved, keys, residual, 1.0, requests.weight)
        written, carry = rewrite(Site(PATH, weight, Solved(keys, residual, delta)), delta, carry)
        weight = weight + dense(written)
        kept = remember(kept, keys, solved) if memory else kept
        info = EditInfo({PATH: written}, {}, jnp.isfinite(frobenius(weight)))
        return Params({PATH: weight}, {}), (kept, step + (requests.weight.sum() > 0)), info, carry

    def update(params: Params, state: Any, requests: Requests) -> Reached:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    def init(params: Params) -> Any:
        return preservation(stream.moment, lam), jnp.zeros((), jnp.int32)

    return Editor(init, update, layerwise)


def sequence(editor: Editor, stream: Stream, steps: int = STEPS) -> list[Reached]:
    """Parameters, state and account after each update."""
    update, params, reached = jax.jit(editor.update), stream.params, []
    state = editor.init(params)
    for _ in range(steps):
        params, state, info = update(params, state, requests())
        reached.append((params, state, info))
    assert update._cache_size() == 1  # type: ignore[attr-defined]
    return reached


def weights(reached: list[Reached]) -> list[np.ndarray]:
    """The matrix after each update, float64."""
    return [np.asarray(params.edited[PATH], np.float64) for params, _, _ in reached]
