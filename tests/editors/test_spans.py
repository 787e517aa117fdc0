"""Methods with a memory of the unedited model, where every layer has a value of its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.editors.d4s import d4s, d4s_config
from jaxedit.editors.locate import locate_and_edit, mean_keys
from jaxedit.editors.nas import nas_config
from jaxedit.editors.reading import value_now
from jaxedit.linalg import added
from jaxedit.lookup import rows_of, split_pass
from jaxedit.types import Params, Requests, Site, Trace
from jaxedit.values import Optimise, Values, lookup_value
from tests.cases import FACTS, Case, relative

LAYERS = (0, 1)
CONTEXTS = ("", "Because of it")


def requests_of(case: Case, facts: list[int]) -> Requests:
    return jax.tree.map(lambda x: x[jnp.array(facts)], case.encode(FACTS, CONTEXTS))


def wanted(case: Case) -> dict[int, Array]:
    """A change of the value of two facts for every layer, large enough to move the keys behind it."""
    draw = np.random.default_rng(0).standard_normal((len(LAYERS), 2, case.model.config.d_model))
    return {layer: jnp.asarray(draw[i], jnp.float32) for i, layer in enumerate(LAYERS)}


def known(deltas: Mapping[int, Array]) -> Optimise:
    """Values that need no optimisation."""

    def optimise(decoder: Any, requests: Requests, rows: Any, split: Any, layer: int, config: Any) -> Values:
        origin = lookup_value(split, requests, layer, config.site)
        return Values(deltas[layer], origin, jnp.zeros((1, 2)), jnp.zeros(2, jnp.int32))

    return optimise


def traced(case: Case, params: Params, requests: Requests) -> Trace:
    @jax.jit
    def look(params: Params, requests: Requests) -> Trace:
        return split_pass(case.model.bind(params), rows_of(requests), *LAYERS).trace

    return look(params, requests)


@pytest.mark.parametrize("values_at", ["each", "shared"])
def test_d4s_reads_the_unedited_model_at_every_layer_and_says_what_the_edited_one_lacks(
    gpt2: Case, values_at: Any
) -> None:
    """In the second batch, so that all layers before are edited: keys of W_0, and what K W lacks of K W_0 + share."""
    config = replace(d4s_config(LAYERS, 0.5), values_at=values_at)
    deltas, start = wanted(gpt2), gpt2.params(LAYERS)
    editor = locate_and_edit(gpt2.model, gpt2.moments, config, d4s(config), known(deltas))
    assert editor.layerwise is not None

    def keep(site: Site, delta: Any, seen: dict[str, Any]) -> Any:
        return delta, seen | {site.path: (site.weight, site.solved)}

    def update(params: Params, state: Any, requests: Requests) -> Any:
        return editor.layerwise(params, state, requests, keep, {})  # type: ignore[misc]

    compiled, second = jax.jit(update), requests_of(gpt2, [2, 3])
    params, state, _, _ = compiled(start, editor.init(start), requests_of(gpt2, [0, 1]))
    _, _, _, seen = compiled(params, state, second)
    unedited, edited = traced(gpt2, start, second), traced(gpt2, params, second)
    for layer, path in gpt2.model.edited_paths(LAYERS).items():
        weight, solved = seen[path]
        keys = mean_keys(unedited.key[layer], second, config.key_mean).mean
        assert relative(solved.keys, keys) <= 1e-5
        share = deltas[layer] / (1 if values_at == "each" else len(LAYERS))
        lacking = share - jnp.matmul(keys, weight - start.edited[path], precision="highest")
        assert relative(solved.residual, lacking) <= 1e-4
        assert relative(solved.residual, share) > 1e-2
    moved = mean_keys(edited.key[1], second, config.key_mean).mean
    assert relative(moved, keys) > 1e-3, "the first batch does not show in the second layer's keys"


def test_nas_has_an_anchor_for_every_layer_that_has_a_value(gpt2: Case) -> None:
    config = replace(nas_config(LAYERS, 0.2, fraction=0.6), values_at="each")
    deltas, start, first = wanted(gpt2), gpt2.params(LAYERS), requests_of(gpt2, [0, 1])
    deltas[1] = 5 * deltas[1]  # of another norm than the first layer's
    editor = locate_and_edit(gpt2.model, gpt2.moments, config, optimise=known(deltas))
    update = jax.jit(editor.update)
    params, state, info = update(start, editor.init(start), first)
    first_path = gpt2.model.config.edited_path(0)
    between = start.edited | {first_path: added(start.edited[first_path], info.delta[first_path])}
    for layer, seen in ((0, start), (1, Params(between, start.frozen))):
        mlp = value_now(traced(gpt2, seen, first).mlp[layer], first, "bare")
        norm = np.linalg.norm(np.asarray(mlp + deltas[layer]), axis=1).mean()
        assert float(state["anchor"][layer]) == pytest.approx(norm, rel=1e-4)
    assert state["anchor"][1] > 2 * state["anchor"][0]
    _, after, _ = update(params, state, requests_of(gpt2, [2, 3]))
    assert np.array_equal(after["anchor"], state["anchor"])
