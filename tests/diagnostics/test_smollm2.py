"""Causal tracing of the real model on facts that it knows."""

import functools

import jax
import numpy as np
import pytest

from jaxedit.data.known import load_known
from jaxedit.data.trace import encode_trace
from jaxedit.diagnostics.layers import choose_layer
from jaxedit.diagnostics.tracing import (
    Effects,
    TraceConfig,
    last_subject_token,
    noise_scale,
    recall,
    subject_noise,
    subject_tokens,
    trace_effects,
)
from jaxedit.errors import ModelError
from jaxedit.models.sources import Checkpoint, load
from jaxedit.types import TracePrompts

pytestmark = pytest.mark.slow

FACTS = 8


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    try:
        return load("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"SmolLM2-135M cannot be fetched: {error}")


@pytest.fixture(scope="module")
def prompts(smollm2: Checkpoint) -> TracePrompts:
    """The first facts of the embedded set that the model knows, with subjects of several tokens."""
    facts = load_known("world", limit=400)
    encoded = encode_trace(facts, smollm2.tokenizer, max_length=256)
    knows = jax.jit(functools.partial(recall, smollm2.model))(smollm2.params, encoded).knows
    fit = np.asarray(knows) & (np.asarray(subject_tokens(encoded)).sum(axis=-1) > 1)
    chosen = np.flatnonzero(fit)[:FACTS]
    assert len(chosen) == FACTS
    return encode_trace([facts[i] for i in chosen], smollm2.tokenizer, max_length=256)


@pytest.fixture(scope="module")
def effects(smollm2: Checkpoint, prompts: TracePrompts) -> Effects:
    """MLP outputs put back at the subject's last token."""
    scale = noise_scale(smollm2.model, smollm2.params, prompts)
    noise = subject_noise(jax.random.key(0), prompts, 10, smollm2.model.config.d_model, scale)
    step = jax.jit(functools.partial(trace_effects, smollm2.model, config=TraceConfig(site="mlp")))
    found = step(smollm2.params, prompts, noise, last_subject_token(prompts))
    return Effects(*(np.asarray(leaf) for leaf in found))


def test_noise_on_the_subject_takes_the_object_away(effects: Effects) -> None:
    assert effects.knows.all()
    assert (effects.corrupted < effects.clean).all()
    assert effects.corrupted.mean() < 0.5 * effects.clean.mean()


def test_recall_goes_through_mlps_below_the_last_layers(smollm2: Checkpoint, effects: Effects) -> None:
    profile = effects.indirect[:, 0].mean(axis=0)
    layers = smollm2.model.config.n_layers
    assert np.isfinite(effects.restored).all()
    assert profile.shape == (layers,)
    assert choose_layer(profile) < layers // 2
    assert profile.max() > 0.1 * effects.total.mean()
    assert profile[-5:].max() < 0.5 * profile.max()
