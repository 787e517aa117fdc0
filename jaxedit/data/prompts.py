"""Bare prompts to token rows: what is only read, not edited or scored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxedit.data.shapes import ladder
from jaxedit.data.tokens import Tokenizer, leading_ids, tokenize
from jaxedit.errors import FactError

SMALLEST_ROW = 8


class PromptRows(NamedTuple):
    """N texts, left-aligned."""

    tokens: Int[np.ndarray, "N T"]
    valid: Bool[np.ndarray, "N T"]


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int) -> PromptRows:
    """Tokenise texts, each behind the tokenizer's leading special tokens; T is the least step that holds all.

    Raises:
        FactError: no texts; a slow tokenizer; a text without tokens, or of more than `max_length`.
    """
    if not texts:
        raise FactError("there are no prompts to encode: give at least one")
    lead, found = leading_ids(tokenizer), tokenize(tokenizer, texts)
    rows = [[*lead, *found[text].ids] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not 0 < len(row) <= max_length:
            raise FactError(f"prompt {text!r} is {len(row)} tokens long; the model takes 1 to {max_length}")
    width = ladder(max(map(len, rows)), SMALLEST_ROW)
    tokens: Any = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return PromptRows(tokens, np.arange(width) < np.array([len(row) for row in rows])[:, None])
