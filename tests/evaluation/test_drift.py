"""Drift of next-token distributions against transformers in float64."""

import copy
import math

import jax
import numpy as np
import pytest
import torch

from jaxedit.errors import ConfigError
from jaxedit.evaluation.drift import POSITIONS, Comparison, divergence, drift
from jaxedit.evaluation.perplexity import perplexity
from jaxedit.types import Params
from tests.cases import LAYER, Case, equations

BLOCKS = np.random.default_rng(1).integers(3, 300, (5, 9)).astype(np.int32)


def changed(case: Case, size: float) -> tuple[Params, Params, torch.nn.Module]:
    """Parameters, the same with one matrix changed, and the oracle changed likewise."""
    before = case.params([LAYER])
    ((path, matrix),) = before.edited.items()
    noise = size * np.random.default_rng(0).standard_normal(matrix.shape).astype(np.float32)
    oracle = copy.deepcopy(case.oracle)
    block = (
        oracle.transformer.h[LAYER].mlp.c_proj
        if case.name == "gpt2"
        else oracle.model.layers[LAYER].mlp.down_proj
    )
    with torch.no_grad():
        block.weight += torch.tensor(noise if case.name == "gpt2" else noise.T).double()
    return before, before._replace(edited={path: matrix + noise}), oracle


@pytest.mark.parametrize("size", [1e-3, 0.3])
@pytest.mark.parametrize("batch", [2, 5])
def test_equals_the_sum_over_the_vocabulary(case: Case, size: float, batch: int) -> None:
    """1e-5 of the value where it is large; where it is 1e-6, what float32 logits allow."""
    before, after, oracle = changed(case, size)
    with torch.no_grad():
        p, q = (model(torch.tensor(BLOCKS)).logits.log_softmax(-1) for model in (case.oracle, oracle))
    kl = (p.exp() * (p - q)).sum(-1)
    found = drift(case.model, before, after, BLOCKS, batch)
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-5 if size > 0.1 else 1e-2)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.agreement < 1 or size < 0.1
    loss = -q[:, :-1].gather(-1, torch.tensor(BLOCKS)[:, 1:, None].long()).mean()
    perplexities = [Comparison(case.model, before, BLOCKS, batch).read(after).perplexity]
    perplexities.append(perplexity(case.model, after, BLOCKS, batch))
    assert perplexities == pytest.approx([loss.exp().item()] * 2, rel=1e-5)


def test_a_text_is_read_once_for_any_number_of_models(gpt2: Case) -> None:
    before, after, _ = changed(gpt2, 0.3)
    others = [jax.tree.map(lambda x: x * size, after) for size in (1.0, 0.9)]  # noqa: B023
    text = Comparison(gpt2.model, before, BLOCKS, 2)
    assert text.read(before).drift == (0, 1)
    assert [text.read(other).drift for other in others] == [
        drift(gpt2.model, before, other, BLOCKS, 2) for other in others
    ]


def test_a_model_has_not_drifted_from_itself(gpt2: Case) -> None:
    params = gpt2.params([LAYER])
    assert drift(gpt2.model, gpt2.checkpoint.params, params, BLOCKS, 4) == (0, 1)
    broken = params._replace(edited=jax.tree.map(lambda x: x * math.nan, params.edited))
    assert math.isnan(drift(gpt2.model, params, broken, BLOCKS, 4).kl)
    assert math.isnan(drift(gpt2.model, broken, params, BLOCKS, 4).kl)


def test_memory_does_not_grow_with_the_text(gpt2: Case) -> None:
    params, tokens, width = gpt2.params([LAYER]), np.zeros((32, 64), np.int32), gpt2.model.config.vocab_size
    states = [np.zeros((*tokens.shape, gpt2.model.config.d_model), np.float32)] * 2
    jaxpr = jax.make_jaxpr(divergence.__wrapped__)(gpt2.model, params, params, tuple(states), tokens).jaxpr
    outputs = [x.aval for equation in equations(jaxpr) for x in equation.outvars]
    tables = [aval.size // width for aval in outputs if aval.shape[-1:] == (width,)]
    assert max(tables) == POSITIONS < tokens.size


@pytest.mark.parametrize(("shape", "batch"), [((0, 5), 2), ((3, 0), 2), ((4,), 2), ((4, 5), 0)])
def test_text_without_positions_is_refused(gpt2: Case, shape: tuple[int, ...], batch: int) -> None:
    params = gpt2.checkpoint.params
    with pytest.raises(ConfigError, match="blocks"):
        drift(gpt2.model, params, params, np.zeros(shape, int), batch)
