"""The lookup token is found by tokens, wherever the subject stands."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .facts import Fact, locate, pad, prompt_row, target_ids, with_target
from .tiny import TINY_CONTEXTS, TINY_FACTS, exact, save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_tokens_up_to_the_lookup_index_end_with_the_subject(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos)
    for fact, context in itertools.product(TINY_FACTS, TINY_CONTEXTS):
        row = prompt_row(tokenizer, fact, context)
        through = tokenizer.decode(row.ids[: row.lookup + 1], skip_special_tokens=True)
        before = tokenizer.decode(row.ids[: row.lookup], skip_special_tokens=True)
        assert through.endswith(fact.subject)
        assert not before.endswith(fact.subject)
        assert (row.ids[0] == tokenizer.bos_token_id) == bos


def test_the_first_whole_word_counts_and_not_the_context() -> None:
    tokenizer = tiny_tokenizer()
    text = "Parisian Paris and Paris"
    assert locate(tokenizer, text, "Paris") == len(tokenizer("Parisian Paris")["input_ids"]) - 1
    fact = Fact("Paris is the capital of", "Paris", "Italy")
    row = prompt_row(tokenizer, fact, "I like Paris")
    assert row.lookup == len(tokenizer("I like Paris. Paris")["input_ids"]) - 1
    with pytest.raises(ValueError, match="whole word"):
        locate(tokenizer, "the Parisian", "Paris")


def test_targets_carry_a_space_and_no_special_token() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    for fact in TINY_FACTS:
        ids = target_ids(tokenizer, fact.target)
        assert tokenizer.bos_token_id not in ids
        assert tokenizer.decode(ids) == " " + fact.target


def test_padding_changes_no_logit() -> None:
    tokenizer = tiny_tokenizer()
    for model in (tiny_gpt2(), tiny_llama()):
        rows = [
            with_target(prompt_row(tokenizer, fact), target_ids(tokenizer, fact.target))
            for fact in TINY_FACTS
        ]
        batch = pad(rows)
        with torch.no_grad():
            together = model(input_ids=batch.ids, attention_mask=batch.mask).logits
            for number, row in enumerate(rows):
                alone = model(input_ids=torch.tensor([row.ids])).logits[0]
                torch.testing.assert_close(together[number, : len(row.ids)], alone, rtol=1e-11, atol=1e-11)


def test_saved_models_come_back(tmp_path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    ids = torch.tensor([prompt_row(tokenizer, TINY_FACTS[0]).ids])
    for build in (tiny_gpt2, tiny_llama):
        model = build(torch.float64, seed=3)
        folder = tmp_path / build.__name__
        save_tiny(model, tokenizer, folder)
        loaded = exact(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-12, atol=1e-12)
        assert AutoTokenizer.from_pretrained(folder)(TINY_FACTS[4].prompt)["input_ids"] == list(
            prompt_row(tokenizer, TINY_FACTS[4]).ids
        )


def test_exact_changes_roundings_only() -> None:
    ids = torch.tensor([prompt_row(tiny_tokenizer(), TINY_FACTS[3]).ids])
    single, double = tiny_llama(torch.float32), tiny_llama(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(single(ids).logits.double(), double(ids).logits, rtol=1e-4, atol=1e-4)
