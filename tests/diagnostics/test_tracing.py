"""Causal tracing against hooks in float64, and the laws that any trace obeys."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import Array

from jaxedit.data.known import KnownFact, as_known
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
from tests.cases import FACTS, Case
from tests.reference.tracing import causal_trace

KNOWN = tuple(as_known(fact) for fact in FACTS)
SAMPLES = 4
WINDOWS = {"residual": 1, "mlp": 2, "attention": 3}


def prompts_of(case: Case, facts: tuple[KnownFact, ...] = KNOWN) -> TracePrompts:
    return encode_trace(facts, case.checkpoint.tokenizer, max_length=64)


def noise_of(case: Case, prompts: TracePrompts, scale: float = 1.0) -> Array:
    width = case.model.config.d_model
    return subject_noise(jax.random.key(7), prompts, SAMPLES, width, scale)


@functools.cache
def compiled(case: Case, config: TraceConfig) -> Any:
    return jax.jit(functools.partial(trace_effects, case.model, config=config))


def effects_of(case: Case, prompts: TracePrompts, noise: Array, where: Array, config: TraceConfig) -> Effects:
    found = compiled(case, config)(case.checkpoint.params, prompts, noise, where)
    return Effects(*(np.asarray(leaf) for leaf in found))


@pytest.mark.parametrize("site", WINDOWS)
def test_every_effect_is_that_of_hooks_in_float64(case: Case, site: str) -> None:
    prompts = prompts_of(case)
    noise = noise_of(case, prompts)
    config = TraceConfig(site=site, window=WINDOWS[site], at_once=2)
    found = effects_of(case, prompts, noise, each_token(prompts), config)
    for i in range(len(KNOWN)):
        prefix, tail = prompts.prefix[i][prompts.prefix_mask[i]], prompts.tail[i][prompts.tail_mask[i]]
        sample = torch.tensor(np.asarray(noise[i], np.float64))[:, np.asarray(subject_tokens(prompts)[i])]
        ids, target = [*prefix.tolist(), *tail.tolist()], int(prompts.target[i])
        expected = causal_trace(case.oracle, ids, len(prefix), target, sample, site, WINDOWS[site])
        restored = expected.restored.numpy()
        assert found.clean[i] == pytest.approx(expected.clean, rel=1e-4)
        assert found.corrupted[i] == pytest.approx(expected.corrupted, rel=1e-4)
        np.testing.assert_allclose(found.restored[i, : len(tail)], restored, rtol=1e-4)
        indirect = restored - expected.corrupted
        assert np.abs(indirect).max() > 0.1 * expected.clean, "there is something to compare"
        error = np.abs(found.indirect[i, : len(tail)] - indirect).max()
        assert error <= 1e-4 * np.abs(indirect).max()


@pytest.mark.parametrize("site", WINDOWS)
def test_without_noise_nothing_is_lost_and_nothing_is_given_back(gpt2: Case, site: str) -> None:
    prompts = prompts_of(gpt2)
    config = TraceConfig(site=site, window=WINDOWS[site], at_once=2)
    found = effects_of(gpt2, prompts, noise_of(gpt2, prompts, 0.0), each_token(prompts), config)
    np.testing.assert_allclose(found.corrupted, found.clean, rtol=1e-6)
    assert np.abs(found.indirect).max() <= 1e-6 * found.clean.max()


def test_all_states_of_one_layer_put_back_give_the_clean_run(case: Case) -> None:
    """The residual stream after a layer is all that the layers above see."""
    prompts = prompts_of(case)
    config = TraceConfig(site="residual", window=1)
    whole = jnp.asarray(prompts.tail_mask)[:, None, :]
    found = effects_of(case, prompts, noise_of(case, prompts), whole, config)
    assert np.abs(found.total / found.clean).max() > 0.1, "the noise takes something away"
    np.testing.assert_allclose(
        found.restored[:, 0], np.repeat(found.clean[:, None], found.restored.shape[-1], 1), rtol=2e-6
    )


def test_noise_reaches_the_rest_of_the_prompt_through_attention_alone(case: Case) -> None:
    """Attention outputs of all layers put back behind the subject: there, the stream is the clean one."""
    prompts = prompts_of(case)
    behind = jnp.asarray(prompts.tail_mask & (prompts.kind > LAST_SUBJECT))[:, None, :]
    config = TraceConfig(site="attention", window=2 * case.model.config.n_layers)
    found = effects_of(case, prompts, noise_of(case, prompts), behind, config)
    has_rest = np.asarray(behind.any(axis=(1, 2)))
    assert 0 < has_rest.sum() < len(KNOWN)
    np.testing.assert_allclose(found.restored[has_rest, 0, 0], found.clean[has_rest], rtol=2e-6)
    np.testing.assert_allclose(found.restored[~has_rest, 0, 0], found.corrupted[~has_rest], rtol=2e-6)


def test_the_last_token_decides_and_tokens_before_a_choice_do_not(case: Case) -> None:
    """Put back after the last layer, only the prompt's last token counts, and it counts for all."""
    prompts = prompts_of(case)
    config = TraceConfig(site="residual", window=1)
    found = effects_of(case, prompts, noise_of(case, prompts), each_token(prompts), config)
    for i, valid in enumerate(prompts.tail_mask):
        last = valid.sum() - 1
        assert found.restored[i, last, -1] == pytest.approx(found.clean[i], rel=2e-6)
        np.testing.assert_allclose(found.restored[i, :last, -1], found.corrupted[i], rtol=2e-6)


def test_padding_and_company_change_nothing(case: Case) -> None:
    prompts = prompts_of(case)
    alone = TracePrompts(*(x[2:3] for x in prompts))
    wide = TracePrompts(
        prefix=np.pad(alone.prefix, ((0, 1), (3, 0))),
        prefix_mask=np.pad(alone.prefix_mask, ((0, 1), (3, 0))),
        tail=np.pad(alone.tail, ((0, 1), (0, 2))),
        tail_mask=np.pad(alone.tail_mask, ((0, 1), (0, 2))),
        kind=np.pad(alone.kind, ((0, 1), (0, 2)), constant_values=-1),
        target=np.pad(alone.target, (0, 1)),
        weight=np.pad(alone.weight, (0, 1)),
        case=np.pad(alone.case, (0, 1), constant_values=-1),
    )
    config = TraceConfig(site="mlp", window=2)
    size = alone.tail.shape[-1]
    together, single, padded = (
        effects_of(case, given, noise_of(case, given), each_token(given), config)
        for given in (prompts, alone, wide)
    )
    for other, i in ((together, 2), (padded, 0)):
        np.testing.assert_allclose(other.clean[i], single.clean[0], rtol=2e-6)
        np.testing.assert_allclose(other.corrupted[i], single.corrupted[0], rtol=2e-6)
        np.testing.assert_allclose(other.restored[i, :size], single.restored[0], rtol=2e-6)
    assert np.isfinite(padded.restored).all()
    np.testing.assert_allclose(padded.indirect[0, size:], 0.0, atol=1e-7)
    scales = [float(noise_scale(case.model, case.checkpoint.params, given)) for given in (alone, wide)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    averages = [average_effects(e.indirect, p) for e, p in ((single, alone), (padded, wide))]
    np.testing.assert_allclose(averages[0].effect, averages[1].effect, atol=1e-8, rtol=1e-5)
    np.testing.assert_array_equal(averages[0].facts, averages[1].facts)


def test_groups_of_samples_and_compilation_change_nothing(gpt2: Case) -> None:
    prompts = TracePrompts(*(x[:2] for x in prompts_of(gpt2)))
    noise, where = noise_of(gpt2, prompts), last_subject_token(prompts)
    whole = effects_of(gpt2, prompts, noise, where, TraceConfig(window=2))
    grouped = effects_of(gpt2, prompts, noise, where, TraceConfig(window=2, at_once=1))
    np.testing.assert_allclose(grouped.restored, whole.restored, rtol=2e-6)
    every = effects_of(gpt2, prompts, noise, each_token(prompts), TraceConfig(window=2))
    for i in range(2):
        last = int(np.argmax(prompts.kind[i] == LAST_SUBJECT))
        np.testing.assert_allclose(whole.restored[i, 0], every.restored[i, last], rtol=2e-6)


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


def test_noise_scale_is_three_deviations_of_the_subjects_embeddings(gpt2: Case) -> None:
    prompts = prompts_of(gpt2)
    table = np.asarray(gpt2.checkpoint.params["embedding"], np.float64)
    expected = 3.0 * table[prompts.tail[np.asarray(subject_tokens(prompts))]].std()
    found = float(noise_scale(gpt2.model, gpt2.checkpoint.params, prompts))
    assert found == pytest.approx(expected, rel=1e-5)


def test_recall_is_the_clean_run(case: Case) -> None:
    prompts = prompts_of(case)
    noise, where = noise_of(case, prompts), last_subject_token(prompts)
    traced = effects_of(case, prompts, noise, where, TraceConfig(window=2))
    found = recall(case.model, case.checkpoint.params, prompts)
    np.testing.assert_allclose(found.probability, traced.clean, rtol=2e-6)
    likeliest = likeliest_targets(case, prompts)
    known = recall(case.model, case.checkpoint.params, prompts._replace(target=likeliest))
    assert known.knows.all()
    assert not recall(case.model, case.checkpoint.params, prompts._replace(target=likeliest + 1)).knows.any()


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
