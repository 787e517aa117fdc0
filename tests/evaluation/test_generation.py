"""Generation against transformers: greedy text, and what sampling may draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from jaxedit.errors import ConfigError
from jaxedit.evaluation.generation import _sample, likeliest, next_token, sample
from tests.cases import Case

STEPS = 32
PROMPTS = ("The Eiffel Tower is located in", "I")


def right_aligned(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rows = [case.checkpoint.tokenizer(text)["input_ids"] for text in PROMPTS]
    width = max(map(len, rows))
    tokens, valid = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], valid[i, width - len(row) :] = row, True
    return tokens, valid


def draw(case: Case, seed: int, **options) -> np.ndarray:
    tokens, valid = right_aligned(case)
    settings = {"top_k": 1, "temperature": 1.0, "banned": ()} | options
    key = jax.random.key(seed)
    return np.asarray(
        sample(case.model, case.checkpoint.params, tokens, valid, STEPS, key, *settings.values())
    )


def test_greedy_text_is_that_of_transformers(case: Case) -> None:
    assert_greedy_is_theirs(case)


@pytest.mark.slow
def test_so_it_is_in_every_family(family_case: Case) -> None:
    """Text longer than the windows."""
    assert_greedy_is_theirs(family_case)


def assert_greedy_is_theirs(case: Case) -> None:
    """Our rows are padded; theirs are continued one at a time."""
    tokens, valid = right_aligned(case)
    plain = GenerationConfig(do_sample=False, max_new_tokens=STEPS, pad_token_id=0, eos_token_id=None)
    case.oracle.generation_config.eos_token_id = None
    found = draw(case, 0)
    assert found.shape == (len(PROMPTS), STEPS)
    for row, real, text in zip(tokens, valid, found, strict=True):
        ids = torch.tensor(row[real][None], dtype=torch.long)
        expected = case.oracle.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        assert text.tolist() == expected[0, ids.shape[1] :].tolist()


def test_sampling_repeats_with_its_key_and_stays_among_the_likeliest(gpt2: Case) -> None:
    banned = (5, 7, 11)
    texts = [draw(gpt2, seed, top_k=4, banned=banned) for seed in (1, 1, 2)]
    assert np.array_equal(texts[0], texts[1])
    assert not np.array_equal(texts[0], texts[2])
    assert not np.isin(texts, banned).any()
    tokens, valid = right_aligned(gpt2)
    row = np.concatenate([tokens[0][valid[0]], texts[0][0]])
    with torch.no_grad():
        logits = gpt2.oracle(torch.tensor(row[None], dtype=torch.long)).logits[0].numpy()
    logits[:, banned] = -np.inf
    ranks = [
        int((logits[-STEPS - 1 + i] > logits[-STEPS - 1 + i, token]).sum())
        for i, token in enumerate(texts[0][0])
    ]
    assert max(ranks) < 4
    assert max(ranks) > 0


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_tempered_probabilities_of_the_likeliest(temperature: float) -> None:
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    many = jnp.repeat(logits, 20_000, axis=0)
    drawn = np.asarray(next_token(many, jax.random.key(0), 3, temperature, (1,)))
    kept = np.array([0, 2, 3])
    expected = np.exp(np.asarray(logits)[0, kept] / temperature)
    expected /= expected.sum()
    share = np.array([(drawn == token).mean() for token in kept])
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / 20_000))


def prompt_logits(case: Case) -> torch.Tensor:
    """Next-token logits of the oracle after every prompt, float64."""
    tokens, valid = right_aligned(case)
    with torch.no_grad():
        return torch.stack(
            [
                case.oracle(torch.tensor(row[real][None], dtype=torch.long)).logits[0, -1]
                for row, real in zip(tokens, valid, strict=True)
            ]
        )


def theirs(logits: torch.Tensor, top_k: int, temperature: float) -> np.ndarray:
    """The probabilities that transformers samples a token from."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    return torch.softmax(chain(torch.zeros((len(logits), 1), dtype=torch.long), logits), dim=-1).numpy()


@pytest.mark.parametrize(("top_k", "temperature"), [(5, 1.0), (40, 0.7), (0, 1.5), (1, 2.0)])
def test_probabilities_of_a_step_are_those_of_transformers(
    gpt2: Case, top_k: int, temperature: float
) -> None:
    logits = prompt_logits(gpt2)
    expected = theirs(logits, top_k, temperature)
    scores, index = likeliest(jnp.asarray(logits.numpy(), jnp.float32), top_k, temperature, ())
    found = np.zeros_like(expected)
    np.put_along_axis(found, np.asarray(index), np.asarray(jax.nn.softmax(scores)), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found > 0).sum() == (expected > 0).sum()


@pytest.mark.parametrize("by_row", [False, True])
def test_draws_of_a_model_follow_them(gpt2: Case, by_row: bool) -> None:
    """Chi-squared over 4,000 texts of both prompts: the first token, and the second behind each first one."""
    top_k, temperature, count = 4, 1.3, 4000
    tokens, valid = (np.repeat(x, count, axis=0) for x in right_aligned(gpt2))
    key = jax.random.key(3)
    keys = jax.random.split(key, len(tokens)) if by_row else key
    drawn = sample(gpt2.model, gpt2.checkpoint.params, tokens, valid, 2, keys, top_k, temperature)
    drawn = np.asarray(drawn).reshape(2, count, 2)
    first = theirs(prompt_logits(gpt2), top_k, temperature)
    for row, real, texts, p in zip(*right_aligned(gpt2), drawn, first, strict=True):
        assert_follows(texts[:, 0], p)
        for token in np.flatnonzero(p):
            ids = torch.tensor([[*row[real], token]], dtype=torch.long)
            with torch.no_grad():
                second = theirs(gpt2.oracle(ids).logits[:, -1], top_k, temperature)[0]
            assert_follows(texts[texts[:, 0] == token, 1], second)


def assert_follows(drawn: np.ndarray, p: np.ndarray) -> None:
    """Pearson's test at 1e-4: one in ten thousand sound samplers would fail; the key is fixed."""
    kept = np.flatnonzero(p)
    assert np.isin(drawn, kept).all()
    expected = p[kept] * len(drawn)
    assert expected.min() > 5
    seen = np.array([(drawn == token).sum() for token in kept])
    distance = ((seen - expected) ** 2 / expected).sum()
    assert jax.scipy.special.gammaincc((len(kept) - 1) / 2, distance / 2) > 1e-4


def test_a_row_with_its_own_key_writes_what_it_writes_alone(gpt2: Case) -> None:
    """The short prompt, behind padding and beside the other, and without."""
    (tokens, valid), keys = right_aligned(gpt2), jax.random.split(jax.random.key(5), 2)
    together = sample(gpt2.model, gpt2.checkpoint.params, tokens, valid, STEPS, keys, 0)
    bare = tokens[1:, valid[1]], np.ones((1, valid[1].sum()), bool)
    assert bare[0].shape[1] < tokens.shape[1]
    alone = sample(gpt2.model, gpt2.checkpoint.params, *bare, STEPS, keys[1:], 0)
    assert np.array_equal(alone[0], together[1])
    assert not np.array_equal(together[0], together[1])


def test_temperature_zero_is_greedy_and_nothing_is_compiled_again(gpt2: Case) -> None:
    greedy = draw(gpt2, 0, top_k=5, temperature=0.0)
    compiled = _sample._cache_size()
    assert np.array_equal(draw(gpt2, 1, top_k=5, temperature=0.0), greedy)
    assert not np.array_equal(draw(gpt2, 1, top_k=5, temperature=0.9), greedy)
    assert _sample._cache_size() == compiled
    assert np.array_equal(draw(gpt2, 0), greedy)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 10**6}, "top_k is 1000000; it must be 1 to"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"banned": (-1,)}, "banned has -1"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one for each of 2 prompts"),
        ({"valid": np.array([[True, False], [True, True]])}, "not right-aligned"),
        ({"valid": np.zeros((2, 2), bool)}, "at least one token"),
    ],
)
def test_values_out_of_range_are_refused(gpt2: Case, option: dict, message: str) -> None:
    given = {"steps": 2, "key": jax.random.key(0), "valid": np.ones((2, 2), bool)} | option
    with pytest.raises(ConfigError, match=message):
        sample(gpt2.model, gpt2.checkpoint.params, np.ones((2, 2), np.int32), **given)
