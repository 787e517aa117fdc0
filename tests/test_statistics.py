"""Second moments of keys against numpy and the oracle, both in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.statistics import finalize, init, second_moments, update
from tests.cases import Case, relative
from tests.reference import statistics as oracle

LAYERS = (0, 1, 2)


def keys_of(case: Case, blocks: np.ndarray, valid: np.ndarray, layer: int) -> np.ndarray:
    """Keys of the valid tokens [n, d_k], from a plain run."""
    decoder, position = case.model.bind(case.checkpoint.params), positions(jnp.asarray(valid))
    h = decoder.embed(jnp.asarray(blocks), position)
    mask = causal_mask(jnp.asarray(valid))
    _, trace, _ = decoder.run(h, range(layer + 1), position=position, mask=mask, trace=("key",))
    return np.asarray(trace.key[layer], np.float64)[valid]


def test_moments_of_all_layers_in_one_pass_are_the_oracles(case: Case) -> None:
    blocks = case.blocks[:11]  # not a multiple of the batch
    found = second_moments(case.model, case.checkpoint.params, blocks, LAYERS, batch=4)
    expected = oracle.second_moments(case.oracle, torch.tensor(blocks, dtype=torch.long), LAYERS)
    assert sorted(found) == list(LAYERS)
    for layer in LAYERS:
        assert relative(found[layer], expected[layer]) <= 1e-5


def test_moments_are_numpys_over_the_same_keys_and_padding_does_not_count(gpt2: Case) -> None:
    """Rows are padded by one token on the left and three on the right, with tokens that would change the sum."""
    blocks = gpt2.blocks[:4]
    valid = np.zeros(blocks.shape, bool)
    valid[:3, 1:-3] = True
    moments = jax.jit(update, static_argnums=0)(
        gpt2.model, gpt2.checkpoint.params, init(gpt2.model, [1]), jnp.asarray(blocks), jnp.asarray(valid)
    )
    keys = keys_of(gpt2, blocks, valid, 1)
    assert int(moments.tokens) == valid.sum() == len(keys)
    assert relative(finalize(moments)[1], keys.T @ keys / len(keys)) <= 1e-6
    alone = second_moments(gpt2.model, gpt2.checkpoint.params, blocks[:3, 1:-3], [1], batch=3)
    assert relative(finalize(moments)[1], alone[1]) <= 1e-5


def test_updates_add_up(gpt2: Case) -> None:
    blocks = gpt2.blocks[:8]
    whole = second_moments(gpt2.model, gpt2.checkpoint.params, blocks, [0, 2], batch=8)
    parts = second_moments(gpt2.model, gpt2.checkpoint.params, blocks, [0, 2], batch=2)
    for layer in (0, 2):
        assert relative(parts[layer], whole[layer]) <= 1e-6


def test_weights_with_nan_are_refused_by_layer(gpt2: Case) -> None:
    path = "layers.1.mlp.up.kernel"
    broken = gpt2.checkpoint.params | {path: gpt2.checkpoint.params[path].at[0, 0].set(jnp.nan)}
    with pytest.raises(StatisticsError, match=r"layer 1 is not finite.*Check the weights"):
        second_moments(gpt2.model, broken, gpt2.blocks[:2], [0, 1], batch=2)


def test_no_tokens_and_a_layer_out_of_range_are_refused(gpt2: Case) -> None:
    with pytest.raises(StatisticsError, match="no tokens were counted"):
        finalize(init(gpt2.model, [0]))
    with pytest.raises(ConfigError, match="layer 3 is out of range: the model has layers 0 to 2"):
        init(gpt2.model, [3])
