"""Token-wise factors: their sum is the gradient, a fact's are its own, padding has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import pad_requests
from jaxedit.editors.features import token_features
from jaxedit.errors import ConfigError
from jaxedit.lookup import whole_rows
from jaxedit.types import Params, Requests
from tests.cases import FACTS, Case, relative

NAMES = {
    "gpt2": ("mlp.up", "mlp.down", "attention.out"),
    "llama": ("mlp.up", "mlp.gate", "mlp.down", "attention.query"),
}


look = jax.jit(token_features, static_argnums=(0, 3, 4))


def take(requests: Requests, facts: list[int]) -> Requests:
    return Requests(*(np.asarray(x)[facts] for x in requests))


def edit_loss(case: Case, params: Params, requests: Requests) -> jax.Array:
    """Sum over facts of the mean target NLL, by the plain forward pass over whole rows."""
    tokens, valid, at = whole_rows(requests)
    log_p = jax.nn.log_softmax(case.model.bind(params)(tokens, valid))
    log_p = jnp.take_along_axis(log_p, at[..., None], axis=1)
    nll = -jnp.take_along_axis(log_p, requests.target[..., None], axis=-1)[..., 0]
    return jnp.sum(nll * requests.target_mask / requests.target_mask.sum(axis=-1, keepdims=True))


def test_sum_of_key_times_gradient_is_the_gradient_of_every_matrix(case: Case) -> None:
    paths = case.model.parameter_paths((0, 1, 2), NAMES[case.name])
    params, requests = case.model.split(case.checkpoint.params, paths), case.encode(FACTS, ("",))
    found = look(case.model, params, requests, paths, "all")
    slope = jax.value_and_grad(lambda edited: edit_loss(case, Params(edited, params.frozen), requests))
    loss, expected = jax.jit(slope)(params.edited)
    assert sorted(found.pairs) == sorted(expected)
    for path, pairs in found.pairs.items():
        assert relative(pairs.key.T @ pairs.gradient, expected[path]) <= 1e-5
    assert float(found.loss.sum()) == pytest.approx(float(loss), rel=1e-5)


def test_a_fact_has_the_same_pairs_alone_in_a_batch_and_beside_padding(gpt2: Case) -> None:
    paths = gpt2.model.parameter_paths((1,), ("mlp.down",))
    params, whole = gpt2.params([1]), gpt2.encode(FACTS, ("",))

    def pairs(facts: list[int], size: int):
        requests = pad_requests(take(whole, facts), size)
        return look(gpt2.model, params, requests, paths, "all").pairs[paths[0]]

    together = pairs([3, 0], 4)
    rows = len(together.real) // 4
    for place, fact in enumerate((3, 0)):
        alone = pairs([fact], 1)
        here = slice(place * rows, (place + 1) * rows)
        assert np.array_equal(together.real[here], alone.real)
        assert relative(together.key[here], alone.key) <= 1e-5
        assert relative(together.gradient[here], alone.gradient) <= 1e-5
    padding = slice(2 * rows, None)
    assert not together.real[padding].any()
    assert not together.key[padding].any()
    assert not together.gradient[padding].any()


def test_answer_tokens_are_those_of_all_that_predict_the_target(gpt2: Case) -> None:
    paths = gpt2.model.parameter_paths((2,), ("mlp.down",))
    params, requests = gpt2.params([2]), gpt2.encode(FACTS, ("",))
    every, answer = (
        look(gpt2.model, params, requests, paths, tokens).pairs[paths[0]] for tokens in ("all", "answer")
    )
    # Nothing is mixed over tokens above the last layer's down-projection: only predicting tokens have a gradient.
    assert int(every.real.sum()) == int(requests.target_mask.sum()) == int(answer.real.sum())
    assert np.array_equal(every.key[every.real], answer.key[answer.real])
    assert np.array_equal(every.gradient[every.real], answer.gradient[answer.real])


def test_unknown_matrices_are_refused_with_the_known_ones(gpt2: Case) -> None:
    with pytest.raises(ConfigError, match=r"unknown projection 'mlp.gate'.*mlp.down.*mlp.up"):
        gpt2.model.parameter_paths((0,), ("mlp.gate",))
    with pytest.raises(ConfigError, match="layer 3 is out of range"):
        gpt2.model.parameter_paths((3,), ("mlp.down",))
