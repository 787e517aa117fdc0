"""UltraEdit and StableEdit against the oracle, their lifelong moments, and warm-up without writing."""

import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import pad_requests
from jaxedit.editors.features import Pairs
from jaxedit.editors.hypernet import fold_pairs
from jaxedit.editors.normalise import empty
from jaxedit.editors.ultraedit import (
    Lifelong,
    LifelongConfig,
    counted,
    lifelong_shift,
    stable_config,
    ultra_edit,
)
from jaxedit.linalg import dense
from jaxedit.types import Requests
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
    assert {int(running.total) for running in state.running.values()} == {len(seen)}


def test_steps_are_the_oracles_and_leave_facts_that_are_written(case: Case) -> None:
    """Every step from the model as it is by then, on the moments of the first."""
    first = replace(config_of("ultraedit"), learning_rate=5e-4, steps=3)
    editor, params = ultra_edit(case.model, first), case.params(LAYERS)
    requests = requests_of(case, [0, 3, 4])
    losses = np.asarray(jax.jit(editor.update)(params, editor.init(params), requests)[2].metrics["loss"])
    between_two_facts = float(np.sort(losses[1])[:2].mean())  # after one step
    config = replace(first, stop_loss=between_two_facts)
    editor = ultra_edit(case.model, config)
    _, state, info = jax.jit(editor.update)(params, editor.init(params), requests)

    facts = [oracle_facts(FACTS)[i] for i in (0, 3, 4)]
    model, matrices = copy.deepcopy(case.oracle), [(layer, "mlp.down") for layer in LAYERS]
    total: dict[Matrix, Any] = dict.fromkeys(matrices, 0)
    of_all = factors(model, case.checkpoint.tokenizer, facts, matrices, config.tokens)
    seen, taken = [token for matrix in matrices for token in of_all[matrix]], list[int]()
    for step in range(config.steps):
        left = [
            fact
            for fact, loss in zip(facts, info.metrics["loss"][step], strict=True)
            if loss >= config.stop_loss
        ]
        taken.append(len(left))
        tokens = factors(model, case.checkpoint.tokenizer, left, matrices, config.tokens)
        for matrix in matrices:
            change = oracle.ultraedit(tokens[matrix], seen, config.learning_rate, config.ridge)
            total[matrix] = total[matrix] + change
            add(model, matrix, change)
    assert all(taken)
    assert 0 < sum(taken) < 9
    for (layer, name), expected in total.items():
        assert relative(dense(info.delta[f"layers.{layer}.{name}.kernel"]), expected) <= TOLERANCE
    assert {int(running.total) for running in state.running.values()} == {len(seen)}


def test_no_step_is_taken_for_facts_that_are_known(gpt2: Case) -> None:
    config = replace(config_of("ultraedit"), steps=4, stop_loss=100.0)
    editor, params = ultra_edit(gpt2.model, config), gpt2.params(LAYERS)
    after, state, info = jax.jit(editor.update)(params, editor.init(params), requests_of(gpt2, [0, 1]))
    assert same_bits(after.edited, params.edited)
    assert int(info.metrics["steps"]) == 1
    assert np.isnan(info.metrics["loss"][1:]).all()
    assert all(int(running.total) > 0 for running in state.running.values()), (
        "moments count facts that are known"
    )


def test_warm_up_moves_the_moments_as_editing_does_and_writes_nothing(gpt2: Case) -> None:
    config = config_of("stableedit")
    params, requests = gpt2.params(LAYERS), requests_of(gpt2, [0, 1, 2])
    before = jax.tree.map(np.array, params)
    editor = ultra_edit(gpt2.model, config)
    update, cold = jax.jit(editor.update), editor.init(params)
    assert editor.observe is not None
    warm = jax.jit(editor.observe)(params, cold, requests)
    assert same_bits(params, before)
    for one, other in zip(
        jax.tree.leaves(warm), jax.tree.leaves(update(params, cold, requests)[1]), strict=True
    ):
        assert relative(one, other) <= 1e-5
    later = requests_of(gpt2, [3, 4])
    changes = [update(params, state, later)[2].delta for state in (cold, warm)]
    assert all(relative(dense(changes[1][path]), dense(changes[0][path])) > 1e-2 for path in changes[0])


def some_pairs(seed: int, tokens: int) -> Pairs:
    """Of a matrix [6, 4]; the first two tokens are not real."""
    keys, real = jax.random.split(jax.random.key(seed)), jnp.arange(tokens) > 1
    key, gradient = (
        jax.random.normal(k, (tokens, d)) * real[:, None] for k, d in zip(keys, (6, 4), strict=True)
    )
    return Pairs(key, gradient, real)


def test_moments_of_two_batches_are_those_of_one() -> None:
    first, second = some_pairs(0, 7), some_pairs(1, 9)
    both = Pairs(*(jnp.concatenate(parts) for parts in zip(first, second, strict=True)))
    with jax.enable_x64(True):
        scatter = jnp.zeros((4, 4), jnp.float64)
    none = Lifelong({"6x4": empty(10)}, {"6x4": scatter})
    count = jax.jit(counted)
    parts, whole = none, count(none, {"a": both})
    for pairs in (first, second):
        parts = count(parts, {"a": pairs})
    assert int(whole.running["6x4"].total) == 12
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert relative(one, other) <= 1e-5


def test_twice_the_rate_is_twice_the_change_and_a_stronger_ridge_makes_it_smaller() -> None:
    pairs = some_pairs(0, 9)
    state = Lifelong(fold_pairs({"6x4": empty(10)}, {"a": pairs}), {})
    config = LifelongConfig(LAYERS)
    once, twice, strong = (
        np.asarray(dense(lifelong_shift(state, pairs, replace(config, **change))))
        for change in ({}, {"learning_rate": 2e-6}, {"ridge": 10.0})
    )
    assert relative(twice, 2 * once) <= 1e-6
    assert np.linalg.norm(strong) < 0.9 * np.linalg.norm(once)
