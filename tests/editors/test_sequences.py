"""Methods that remember: whole sequences in float32 against the oracle's in float64, two batches each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.alphaedit import alphaedit_config, evoedit_config
from jaxedit.editors.blue import blue
from jaxedit.editors.d4s import d4s, d4s_config
from jaxedit.editors.encore import encore_config
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.lyaplock import lyaplock, lyaplock_config
from jaxedit.editors.memit import memit_config
from jaxedit.editors.moving_null_space import betaedit_config, langedit_config, moving_null_space
from jaxedit.editors.nas import nas_config
from jaxedit.editors.pmet import pmet_config
from jaxedit.editors.solver import Solver
from jaxedit.linalg import dense
from jaxedit.types import Requests
from jaxedit.values import Optimise, Values, optimise_values
from tests.cases import FACTS, Case, oracle_facts, relative, tuned
from tests.reference import closed_forms, layout
from tests.reference import sequences as oracle
from tests.reference.values import Settings

BATCHES = ([0, 3, 4], [1, 2])
SIZE = 3
CONTEXTS = ("", "The weather was fine", "Because of it")
STEPS = 4
TOLERANCE = 1e-4
LAM, L2, FRACTION = 0.5, 0.2, 0.6
Config = LocateConfig | Any


@dataclass(frozen=True)
class Method:
    """One editor both ways."""

    config: Callable[[tuple[int, ...]], Config]
    oracle: Callable[[oracle.Scene, list[Any]], list[oracle.Deltas]]
    solver: Callable[[Config], Solver] | None = None
    patience: int | None = None


def projectors(scene: oracle.Scene) -> dict[int, torch.Tensor]:
    return {layer: closed_forms.smallest_projector(scene.C0[layer], FRACTION) for layer in scene.layers}


def spread(how: str) -> Method:
    return Method(
        lambda layers: replace(memit_config(layers, LAM, memory=True), spread=how),
        lambda scene, facts: oracle.memit(scene, facts, LAM, how=how),
    )


METHODS = {
    "memit, spread by root": spread("sqrt"),
    "memit, all at the last": spread("last"),
    "encore": Method(
        lambda layers: encore_config(layers, LAM, lam_n=0.1),
        lambda scene, facts: oracle.memit(scene, facts, LAM, lam_n=0.1),
        patience=1,
    ),
    "alphaedit": Method(
        lambda layers: alphaedit_config(layers, L2, fraction=FRACTION),
        lambda scene, facts: oracle.alphaedit(scene, facts, projectors(scene), L2),
    ),
    "alphaedit, keys as solved": Method(
        lambda layers: replace(alphaedit_config(layers, L2, fraction=FRACTION), memory_keys="solved"),
        lambda scene, facts: oracle.alphaedit(scene, facts, projectors(scene), L2, recomputed=False),
    ),
    "evoedit": Method(
        lambda layers: evoedit_config(layers, L2, fraction=FRACTION),
        lambda scene, facts: oracle.evoedit(scene, facts, projectors(scene), L2),
    ),
    "betaedit": Method(
        lambda layers: betaedit_config(layers, LAM, L2, fraction=FRACTION, refresh=2),
        lambda scene, facts: oracle.betaedit(scene, facts, LAM, L2, FRACTION, refresh=2),
        moving_null_space,
    ),
    "langedit": Method(
        lambda layers: langedit_config(layers, L2, fraction=FRACTION, corpus=3.0),
        lambda scene, facts: oracle.langedit(scene, facts, L2, FRACTION, corpus=3.0),
        moving_null_space,
    ),
    "lyaplock": Method(
        lambda layers: lyaplock_config(layers, LAM, allowance=0.25),
        lambda scene, facts: oracle.lyaplock(scene, facts, LAM, allowance=0.25),
        lyaplock,
    ),
    "d4s": Method(
        lambda layers: d4s_config(layers, LAM), lambda scene, facts: oracle.d4s(scene, facts, LAM), d4s
    ),
    "memit-blue": Method(
        lambda layers: blue(memit_config(layers, LAM, memory=True)),
        lambda scene, facts: oracle.blue(scene, facts, LAM),
    ),
    "nas": Method(
        lambda layers: nas_config(layers, L2, fraction=FRACTION),
        lambda scene, facts: oracle.nas(scene, facts, projectors(scene), L2),
    ),
    "pmet": Method(
        lambda layers: pmet_config(layers, LAM), lambda scene, facts: oracle.pmet(scene, facts, LAM)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_both_batches_are_the_oracles_given_its_values(case: Case, name: str) -> None:
    """Keys, residuals, spread, solve and memory: all but the optimisation."""
    method = METHODS[name]
    settings, scene, expected = theirs(case, method)
    found = iter(scene.optimised)

    def known(decoder: Any, requests: Requests, *_: Any) -> Values:
        values = next(found)
        delta, origin = (np.zeros((SIZE, case.model.config.d_model), np.float32) for _ in range(2))
        for i, value in enumerate(values):
            pair = value.delta.ndim == 2  # of attention and MLP the MLP's is written
            delta[i], origin[i] = (x[1] if pair else x for x in (value.delta, value.h0))
        nothing = jnp.zeros((1, SIZE)), jnp.zeros((SIZE,), jnp.int32)
        return Values(jnp.asarray(delta), jnp.asarray(origin), *nothing)

    assert_same(ours(case, method, settings, lambda update: update, known), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_both_batches_are_the_oracles_from_end_to_end(case: Case, name: str) -> None:
    settings, _, expected = theirs(case, METHODS[name])
    assert_same(ours(case, METHODS[name], settings, jax.jit, optimise_values), expected)


def theirs(case: Case, method: Method) -> tuple[Settings, oracle.Scene, list[oracle.Deltas]]:
    settings = Settings(
        lr=0.1, steps=STEPS, weight_decay=0.01, clamp=4.0, stop_loss=0.0, patience=method.patience
    )
    scene = oracle.Scene(case.oracle, case.checkpoint.tokenizer, CONTEXTS, case.span, case.C0, settings)
    facts = oracle_facts(FACTS)
    with layout.restored(case.oracle, case.span):
        return settings, scene, method.oracle(scene, [[facts[i] for i in batch] for batch in BATCHES])


def assert_same(found: list[dict[int, np.ndarray]], expected: list[oracle.Deltas]) -> None:
    for mine, deltas in zip(found, expected, strict=True):
        assert sorted(mine) == sorted(deltas)
        for layer, delta in deltas.items():
            if delta.any():
                assert relative(mine[layer], delta.T) <= TOLERANCE
            else:
                assert not mine[layer].any()


def ours(
    case: Case, method: Method, settings: Settings, compiled: Callable[[Any], Any], optimise: Optimise
) -> list[dict[int, np.ndarray]]:
    """Delta [in, out] by layer, of both batches padded to one size."""
    config = tuned(method.config(case.span), settings)
    solver = None if method.solver is None else method.solver(config)
    editor = locate_and_edit(case.model, case.moments, config, solver, optimise)
    params = case.params(config.layers)
    state, update, result = editor.init(params), compiled(editor.update), []
    whole = case.encode(FACTS, CONTEXTS)
    paths = case.model.edited_paths(config.layers)
    for batch in BATCHES:
        requests = pad_requests(type(whole)(*(np.asarray(x)[batch] for x in whole)), SIZE)
        requests = jax.tree.map(jnp.asarray, requests)
        params, state, info = update(params, state, requests)
        assert bool(info.finite)
        result.append({layer: np.asarray(dense(info.delta[path])) for layer, path in paths.items()})
    return result
