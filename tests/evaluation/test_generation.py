"""Generation against transformers: greedy text, and what sampling may draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from jaxedit.evaluation.generation import next_token, sample
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
