"""Estimates of memory against what the compiler sets aside, and what is made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array

from jaxedit.editors.objective import text_nll
from jaxedit.memory import Work, activation_bytes, cut_for, device_memory
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.types import Params, TextBatch

LLAMA = DecoderConfig(
    family="llama", vocab_size=16_000, d_model=256, d_ff=768, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=32,
    max_positions=256, norm="rms", norm_eps=1e-5, position="rope", activation="silu", gated_mlp=True,
    attention_bias=False, attention_out_bias=False, mlp_bias=False, tied_head=True,
)  # fmt: skip
GPT2 = dataclasses.replace(
    LLAMA, family="gpt2", norm="layer", position="learned", gated_mlp=False, n_kv_heads=8
)
GPT2 = dataclasses.replace(GPT2, activation="gelu_tanh", mlp_bias=True)
LENGTH = 128


def set_aside(config: DecoderConfig, rows: int) -> int:
    """Bytes for the gradient of a text's NLL in one layer's matrix, besides arguments and results."""
    model = Model(config)
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in model.shapes.items()}

    def gradient(params: dict[str, Array], batch: TextBatch) -> Array:
        def loss(matrix: Array) -> Array:
            objective = text_nll(lambda w: model.bind(Params(w, params)), batch)
            return jnp.sum(objective.loss({config.edited_path(0): matrix}) * objective.share)

        return jax.grad(loss)(params[config.edited_path(0)])

    batch = TextBatch(*(jax.ShapeDtypeStruct((rows, LENGTH), dtype) for dtype in (jnp.int32, jnp.bool_)))
    return jax.jit(gradient).lower(shapes, batch).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_row_needs_what_is_estimated(config: DecoderConfig) -> None:
    needed = (set_aside(config, 16) - set_aside(config, 8)) / 8
    estimate = activation_bytes(config, Work(LENGTH, LENGTH, config.n_layers, LENGTH), 4)
    assert 0.5 * estimate <= needed <= 1.15 * estimate


@given(facts=st.integers(1, 500), share=st.floats(0.01, 1000.0))
def test_pieces_are_as_few_as_the_budget_allows(facts: int, share: float) -> None:
    work = Work(tokens=100, context=40, layers=6, reads=20)
    whole, again = (activation_bytes(LLAMA, work, 4, remat) for remat in (False, True))
    assert again < whole
    budget = share * whole
    cut = cut_for(facts, LLAMA, work, 4, budget)
    assert cut.remat == (budget < whole)
    each, at_once = (again, whole)[not cut.remat], -(-facts // cut.pieces)
    assert cut.needed == at_once * each
    assert cut.needed <= budget or at_once == 1
    if cut.pieces > 1:
        assert -(-facts // (cut.pieces - 1)) * each > budget


def test_a_cpu_has_the_memory_of_its_machine() -> None:
    assert 2**28 < device_memory() < 2**50
