"""Causal tracing against hooks in float64, and the laws that any trace obeys."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import Array

from jaxedit.data.known import as_known
from jaxedit.data.trace import encode_trace
from jaxedit.diagnostics.layers import choose_layer, choose_span
from jaxedit.diagnostics.tracing import (
    Effects,
    TraceConfig,
    average_effects,
    each_token,
    last_subject_token,
    layer_windows,
    noise_scale,
    recall,
    subject_noise,
    subject_tokens,
    trace_effects,
)
from jaxedit.errors import ConfigError
from jaxedit.types import FIRST_SUBJECT, LAST, LAST_SUBJECT, MIDDLE_SUBJECT, TracePrompts
from tests.cases import FACTS, Case, relative
from tests.reference.tracing import causal_trace

KNOWN = tuple(as_known(fact) for fact in FACTS)
SAMPLES = 4
CONFIGS = {
    "residual": TraceConfig(site="residual", window=1, at_once=2),
    "mlp": TraceConfig(site="mlp", window=2, at_once=2),
    "attention": TraceConfig(site="attention", window=3, at_once=2),
}


def prompts_of(case: Case) -> TracePrompts:
    return encode_trace(KNOWN, case.checkpoint.tokenizer, max_length=64)


def noise_of(case: Case, prompts: TracePrompts) -> Array:
    return subject_noise(jax.random.key(7), prompts, SAMPLES, case.model.config.d_model, 1.0)


@functools.cache
def compiled(case: Case, config: TraceConfig) -> Any:
    return jax.jit(functools.partial(trace_effects, case.model, config=config))


def effects_of(case: Case, prompts: TracePrompts, noise: Array, where: Array, config: TraceConfig) -> Effects:
    found = compiled(case, config)(case.checkpoint.params, prompts, noise, where)
    return Effects(*(np.asarray(leaf) for leaf in found))


@functools.cache
def traced(case: Case, site: str) -> Effects:
    """Every token of every fact put back alone."""
    prompts = prompts_of(case)
    return effects_of(case, prompts, noise_of(case, prompts), each_token(prompts), CONFIGS[site])


@pytest.mark.parametrize("site", CONFIGS)
def test_every_effect_is_that_of_hooks_in_float64(case: Case, site: str) -> None:
    assert_effects_of_hooks(case, site)


@pytest.mark.parametrize("name", ["gemma2", pytest.param("gptj", marks=pytest.mark.slow)])
def test_so_it_is_with_windows_parallel_branches_and_norms_behind_the_mlp(
    case_of: Callable[[str], Case], name: str
) -> None:
    assert_effects_of_hooks(case_of(name), "mlp")


def assert_effects_of_hooks(case: Case, site: str) -> None:
    prompts, found = prompts_of(case), traced(case, site)
    noise = np.asarray(noise_of(case, prompts), np.float64)
    indirect = np.zeros(found.restored.shape)
    for i, valid in enumerate(prompts.tail_mask):
        prefix = prompts.prefix[i][prompts.prefix_mask[i]]
        sample = torch.tensor(noise[i][:, np.asarray(subject_tokens(prompts)[i])])
        ids, target = [*prefix.tolist(), *prompts.tail[i][valid].tolist()], int(prompts.target[i])
        window = CONFIGS[site].window
        expected = causal_trace(case.oracle, ids, len(prefix), target, sample, site, window)
        assert found.clean[i] == pytest.approx(expected.clean, rel=1e-5)
        assert found.corrupted[i] == pytest.approx(expected.corrupted, rel=1e-5)
        indirect[i, : valid.sum()] = expected.restored.numpy() - expected.corrupted
    assert np.abs(indirect).max() > 0.05 * found.clean.max(), "there is something to compare"
    real = prompts.tail_mask[:, :, None]
    assert relative(found.indirect * real, indirect) <= 1e-4


@pytest.mark.parametrize("site", CONFIGS)
def test_without_noise_nothing_is_lost_and_nothing_is_given_back(case: Case, site: str) -> None:
    prompts = prompts_of(case)
    silent = jnp.zeros_like(noise_of(case, prompts))
    found = effects_of(case, prompts, silent, each_token(prompts), CONFIGS[site])
    np.testing.assert_allclose(found.corrupted, found.clean, rtol=2e-6)
    assert np.abs(found.indirect / found.clean[:, None, None]).max() <= 2e-6


def test_all_states_of_one_layer_put_back_give_the_clean_run(case: Case) -> None:
    """The residual stream after a layer is all that the layers above see."""
    prompts = prompts_of(case)
    whole = jnp.broadcast_to(prompts.tail_mask[:, None, :], each_token(prompts).shape)
    found = effects_of(case, prompts, noise_of(case, prompts), whole, CONFIGS["residual"])
    assert np.abs(found.total / found.clean).max() > 0.1, "the noise takes something away"
    clean = np.broadcast_to(found.clean[:, None, None], found.restored.shape)
    np.testing.assert_allclose(found.restored, clean, rtol=2e-6)


def test_noise_reaches_the_rest_of_the_prompt_through_attention_alone(gpt2: Case) -> None:
    """Attention outputs of all layers put back behind the subject: there, the stream is the clean one."""
    prompts = prompts_of(gpt2)
    behind = jnp.asarray(prompts.tail_mask & (prompts.kind > LAST_SUBJECT))[:, None, :]
    config = TraceConfig(site="attention", window=2 * gpt2.model.config.n_layers)
    found = effects_of(gpt2, prompts, noise_of(gpt2, prompts), behind, config)
    has_rest = np.asarray(behind.any(axis=(1, 2)))
    assert 0 < has_rest.sum() < len(KNOWN)
    np.testing.assert_allclose(found.restored[has_rest, 0, 0], found.clean[has_rest], rtol=2e-6)
    np.testing.assert_allclose(found.restored[~has_rest, 0, 0], found.corrupted[~has_rest], rtol=2e-6)


def test_after_the_last_layer_the_last_token_is_all_and_the_others_are_nothing(case: Case) -> None:
    prompts, found = prompts_of(case), traced(case, "residual")
    for i, valid in enumerate(prompts.tail_mask):
        last = valid.sum() - 1
        assert found.restored[i, last, -1] == pytest.approx(found.clean[i], rel=2e-6)
        np.testing.assert_allclose(found.restored[i, :last, -1], found.corrupted[i], rtol=2e-6)


def test_padding_and_company_change_nothing(gpt2: Case) -> None:
    prompts, together = prompts_of(gpt2), traced(gpt2, "mlp")
    one = TracePrompts(*(x[2:3] for x in prompts))
    wide = TracePrompts(
        prefix=np.pad(one.prefix, ((0, 1), (3, 0))),
        prefix_mask=np.pad(one.prefix_mask, ((0, 1), (3, 0))),
        tail=np.pad(one.tail, ((0, 1), (0, 2))),
        tail_mask=np.pad(one.tail_mask, ((0, 1), (0, 2))),
        kind=np.pad(one.kind, ((0, 1), (0, 2)), constant_values=-1),
        target=np.pad(one.target, (0, 1)),
        weight=np.pad(one.weight, (0, 1)),
        case=np.pad(one.case, (0, 1), constant_values=-1),
    )
    size = one.tail.shape[-1]
    padded = effects_of(gpt2, wide, noise_of(gpt2, wide), each_token(wide), CONFIGS["mlp"])
    assert padded.clean[0] == pytest.approx(together.clean[2], rel=2e-6)
    assert padded.corrupted[0] == pytest.approx(together.corrupted[2], rel=2e-6)
    np.testing.assert_allclose(padded.restored[0, :size], together.restored[2], rtol=2e-6)
    assert np.isfinite(padded.restored).all()
    np.testing.assert_allclose(padded.restored[0, size:], padded.corrupted[0], rtol=2e-6)
    scales = [float(noise_scale(gpt2.model, gpt2.checkpoint.params, given)) for given in (one, wide)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    averages = [
        average_effects(indirect, given)
        for indirect, given in ((together.indirect[2:3], one), (padded.indirect, wide))
    ]
    np.testing.assert_allclose(averages[0].effect, averages[1].effect, atol=1e-8, rtol=1e-4)
    np.testing.assert_array_equal(averages[0].facts, averages[1].facts)


def test_samples_one_by_one_give_the_same(gpt2: Case) -> None:
    prompts = TracePrompts(*(x[:2] for x in prompts_of(gpt2)))
    config = dataclasses.replace(CONFIGS["mlp"], at_once=1)
    found = effects_of(gpt2, prompts, noise_of(gpt2, prompts), each_token(prompts), config)
    np.testing.assert_allclose(found.restored, traced(gpt2, "mlp").restored[:2], rtol=2e-6)


def test_choices_of_tokens_are_the_tokens(gpt2: Case) -> None:
    prompts = prompts_of(gpt2)
    last = np.asarray(last_subject_token(prompts))
    for i, fact in enumerate(KNOWN):
        assert (np.asarray(each_token(prompts))[i].sum(axis=0) == prompts.tail_mask[i]).all()
        ids = prompts.tail[i][: int(np.flatnonzero(last[i, 0]).item()) + 1]
        assert gpt2.checkpoint.tokenizer.decode(ids).strip() == fact.subject


def test_noise_has_its_scale_on_the_subject_and_is_nowhere_else(gpt2: Case) -> None:
    prompts = prompts_of(gpt2)
    width = gpt2.model.config.d_model
    noise = np.asarray(subject_noise(jax.random.key(0), prompts, 200, width, 3.0))
    subject = np.asarray(subject_tokens(prompts))
    drawn = noise.transpose(0, 2, 1, 3)[subject]
    assert drawn.std() == pytest.approx(3.0, rel=0.02)
    assert abs(drawn.mean()) <= 0.05
    assert not noise.transpose(0, 2, 1, 3)[~subject].any()
    other = np.asarray(subject_noise(jax.random.key(1), prompts, 200, width, 3.0))
    assert not np.allclose(noise, other)
    flat = noise.transpose(0, 2, 1, 3)[subject].reshape(len(drawn), -1)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() <= 0.1, "draws of other tokens are independent"


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_noise_scale_is_three_deviations_of_the_subjects_embeddings(
    gpt2: Case, case_of: Callable[[str], Case], name: str
) -> None:
    """As they enter the residual stream: Gemma's are scaled by the root of their width."""
    case = gpt2 if name == "gpt2" else case_of(name)
    prompts, scale = prompts_of(case), 1.0 if name == "gpt2" else case.model.config.d_model**0.5
    table = scale * np.asarray(case.checkpoint.params["embedding"], np.float64)
    expected = 3.0 * table[prompts.tail[np.asarray(subject_tokens(prompts))]].std()
    found = float(noise_scale(case.model, case.checkpoint.params, prompts))
    assert found == pytest.approx(expected, rel=1e-5)


def test_recall_is_the_clean_run(case: Case) -> None:
    prompts = prompts_of(case)
    run = jax.jit(functools.partial(recall, case.model))
    found = run(case.checkpoint.params, prompts)
    np.testing.assert_allclose(found.probability, traced(case, "mlp").clean, rtol=2e-6)
    np.testing.assert_array_equal(found.knows, traced(case, "mlp").knows)
    likeliest = likeliest_targets(case, prompts)
    assert run(case.checkpoint.params, prompts._replace(target=likeliest)).knows.all()
    assert not run(case.checkpoint.params, prompts._replace(target=likeliest + 1)).knows.any()


def likeliest_targets(case: Case, prompts: TracePrompts) -> np.ndarray:
    """The arg-max after every prompt, by torch."""
    result = []
    for i in range(len(prompts.case)):
        ids = np.concatenate(
            [prompts.prefix[i][prompts.prefix_mask[i]], prompts.tail[i][prompts.tail_mask[i]]]
        )
        with torch.no_grad():
            logits = case.oracle(torch.tensor(ids[None], dtype=torch.long)).logits[0, -1]
        result.append(int(logits.argmax()))
    return np.array(result, np.int32)


def test_windows_are_cut_at_both_ends() -> None:
    assert layer_windows(4, 1) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]
    assert layer_windows(4, 2) == [range(0, 1), range(0, 2), range(1, 3), range(2, 4)]
    assert layer_windows(12, 10)[6] == range(1, 11)
    assert layer_windows(3, 10) == [range(0, 3)] * 3


@pytest.mark.parametrize(("setting", "message"), [({"window": 0}, "at least 1"), ({"at_once": 3}, "divide")])
def test_settings_that_cannot_work_are_refused(gpt2: Case, setting: dict[str, int], message: str) -> None:
    prompts = prompts_of(gpt2)
    with pytest.raises(ConfigError, match=message):
        trace_effects(
            gpt2.model,
            gpt2.checkpoint.params,
            prompts,
            noise_of(gpt2, prompts),
            each_token(prompts),
            TraceConfig(**setting),
        )


def test_averages_are_within_a_fact_first_and_over_facts_that_have_the_kind(gpt2: Case) -> None:
    kind = np.array(
        [
            [FIRST_SUBJECT, MIDDLE_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, LAST],
            [FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, -1, -1],
            [LAST_SUBJECT, LAST, -1, -1, -1],
            [LAST_SUBJECT, LAST, -1, -1, -1],
        ]
    )
    weight = np.array([1, 1, 1, 0], np.float32)
    prompts = prompts_of(gpt2)._replace(kind=kind, weight=weight)
    indirect = np.stack([np.arange(20, dtype=np.float32).reshape(4, 5), np.full((4, 5), np.nan)], axis=-1)
    indirect[:3, :, 1] = 1.0
    found = average_effects(jnp.asarray(indirect), prompts)
    np.testing.assert_array_equal(found.facts, [2, 2, 3, 0, 0, 2])
    middle = (np.mean([1, 2]) + 6) / 2
    expected = [np.mean([0, 5]), middle, np.mean([3, 7, 10]), np.nan, np.nan, np.mean([4, 11])]
    np.testing.assert_allclose(found.effect[:, 0], expected)
    np.testing.assert_allclose(found.effect[[0, 1, 2, 5], 1], 1.0)


def test_the_chooser_takes_the_peak_and_the_span_around_it() -> None:
    effect = np.array([0.0, 0.01, 0.05, 0.09, 0.07, 0.01, 0.06, -0.02])
    assert choose_layer(effect) == 3
    assert choose_span(effect, 3) == (2, 3, 4)
    assert choose_span(effect, 8) == tuple(range(8))
    assert choose_layer(np.array([0.1, 0.3, 0.3])) == 1
    spike = np.array([0.0, 0.0, 0.5, 0.0, 0.3, 0.3, 0.3])
    assert choose_layer(spike) == 2
    assert choose_span(spike, 3) == (4, 5, 6)


@pytest.mark.parametrize(
    ("effect", "width", "message"),
    [([0.1, np.nan], 1, "finite"), ([], 1, "finite"), ([0.1, 0.2], 3, "from 1 to"), ([0.1], 0, "from 1 to")],
)
def test_the_chooser_refuses_what_it_cannot_choose_from(
    effect: list[float], width: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_span(np.array(effect), width)
