"""Bare prompts as rows of tokens."""

import pytest

from jaxedit.data.prompts import encode_prompts
from jaxedit.errors import FactError
from tests.reference.tiny import tiny_tokenizer

TEXTS = ("Paris is the capital of", "The Eiffel Tower is located in the city of", "Paris")


@pytest.mark.parametrize("bos", [False, True])
def test_rows_are_what_the_tokenizer_gives(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    rows = encode_prompts(TEXTS, tokenizer, max_length=64)
    for text, tokens, valid in zip(TEXTS, rows.tokens, rows.valid, strict=True):
        assert tokens[valid].tolist() == tokenizer(text)["input_ids"]
        assert valid[: valid.sum()].all(), "left-aligned"


def test_what_cannot_be_read_is_named() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(FactError, match="at least one"):
        encode_prompts((), tokenizer, max_length=64)
    with pytest.raises(FactError, match="'The Eiffel Tower"):
        encode_prompts(TEXTS, tokenizer, max_length=5)
    with pytest.raises(FactError, match="0 tokens"):
        encode_prompts(("",), tokenizer, max_length=64)
