"""UltraEdit and StableEdit against the oracle, their lifelong moments, and warm-up without writing."""

import copy
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxedit.data import pad_requests
from jaxedit.editors.ultraedit import Lifelong, LifelongConfig, observe, stable_config, start, ultra_edit
from jaxedit.linalg import dense
from jaxedit.types import Params, Requests
from tests.cases import FACTS, Case, oracle_facts, relative, same_bits
from tests.reference import hypernets as oracle
from tests.reference.factors import Matrix, Token, add, factors

LAYERS = (0, 1)
BATCHES = ([0, 3], [4, 1, 2])
RATE = 1e-4
TOLERANCE = 1e-4


def config_of(name: str) -> LifelongConfig:
    """StableEdit on all tokens, so that there are more of them than the gradients have components."""
    if name == "ultraedit":
        return LifelongConfig(LAYERS, learning_rate=RATE)
    return replace(stable_config(LAYERS), learning_rate=RATE, tokens="all")


def requests_of(case: Case, batch: list[int], size: int = 3) -> Requests:
    whole = case.encode(FACTS, ("",))
    return pad_requests(Requests(*(np.asarray(x)[batch] for x in whole)), size)


@pytest.mark.parametrize("name", ["ultraedit", "stableedit"])
def test_both_edits_of_a_sequence_are_the_oracles(case: Case, name: str) -> None:
    config = config_of(name)
    editor, params = ultra_edit(case.model, config), case.params(LAYERS)
    state, update, model = editor.init(params), jax.jit(editor.update), copy.deepcopy(case.oracle)
    matrices: list[Matrix] = [(layer, "mlp.down") for layer in LAYERS]
    seen: list[Token] = []
    for batch in BATCHES:
        params, state, info = update(params, state, requests_of(case, batch))
        facts = [oracle_facts(FACTS)[i] for i in batch]
        tokens = factors(model, case.checkpoint.tokenizer, facts, matrices, config.tokens)
        seen += [token for matrix in matrices for token in tokens[matrix]]
        assert not config.whitened or len(seen) > len(seen[0].v) + 1
        for matrix in matrices:
            expected = oracle.ultraedit(tokens[matrix], seen, RATE, config.ridge, config.whitened)
            found = info.delta[f"layers.{matrix[0]}.mlp.down.kernel"]
            assert relative(dense(found), expected) <= TOLERANCE
            add(model, matrix, expected)
    assert {int(running.count) for running in state.running.values()} == {len(seen)}


def test_warm_up_moves_the_moments_as_editing_does_and_writes_nothing(gpt2: Case) -> None:
    config = config_of("stableedit")
    params, requests = gpt2.params(LAYERS), requests_of(gpt2, [0, 1, 2])
    before = jax.tree.map(np.array, params)
    warm, _ = jax.jit(observe(gpt2.model, config))(params, start(gpt2.model, config), requests)
    assert same_bits(params, before)
    cold = ultra_edit(gpt2.model, config)
    _, edited, _ = jax.jit(cold.update)(params, cold.init(params), requests)
    for one, other in zip(jax.tree.leaves(warm), jax.tree.leaves(edited), strict=True):
        assert relative(one, other) <= 1e-5
    begun = ultra_edit(gpt2.model, config, warm)
    assert same_bits(begun.init(params), warm)
    later = requests_of(gpt2, [3, 4], 3)
    changes = [
        jax.jit(editor.update)(params, editor.init(params), later)[2].delta for editor in (cold, begun)
    ]
    assert all(relative(dense(changes[1][path]), dense(changes[0][path])) > 1e-2 for path in changes[0])


def test_moments_of_two_batches_are_those_of_one_and_padding_facts_do_not_count(gpt2: Case) -> None:
    config = config_of("stableedit")
    params, look = gpt2.params(LAYERS), jax.jit(observe(gpt2.model, config))

    def after(*batches: Requests) -> Lifelong:
        state = start(gpt2.model, config)
        for requests in batches:
            state, _ = look(params, state, requests)
        return state

    whole = after(requests_of(gpt2, [0, 1, 2, 3, 4], 5))
    parts = after(requests_of(gpt2, [0, 1], 5), requests_of(gpt2, [2, 3, 4], 5))
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert relative(one, other) <= 1e-4


def test_rate_and_ridge_act_as_they_should(gpt2: Case) -> None:
    """Twice the rate is twice the change; a stronger ridge makes it smaller."""
    params: Params = gpt2.params(LAYERS)
    sizes = []
    for config in (
        config_of("ultraedit"),
        replace(config_of("ultraedit"), learning_rate=2 * RATE),
        replace(config_of("ultraedit"), ridge=10.0),
    ):
        editor = ultra_edit(gpt2.model, config)
        info = jax.jit(editor.update)(params, editor.init(params), requests_of(gpt2, [0, 3]))[2]
        sizes.append({path: np.linalg.norm(dense(delta)) for path, delta in info.delta.items()})
    for path, size in sizes[0].items():
        assert sizes[1][path] == pytest.approx(2 * size, rel=1e-5)
        assert sizes[2][path] < 0.9 * size
