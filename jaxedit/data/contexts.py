"""Text that the model itself writes: prefixes for prompts, and a corpus where no other is given."""

from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Int
from transformers import PreTrainedTokenizerBase

from jaxedit.data.tokens import leading_ids

Generate = Callable[[Int[np.ndarray, "N P"], Bool[np.ndarray, "N P"], int, Array], Int[Array, "N steps"]]
"""`generate(prompt, valid, steps, key)`: continues right-aligned prompts."""

# Sampling starts behind a line break: without BOS, a model whose first token is a word is unlike itself.
START = "\n"
MEMIT_OPENINGS = ("The", "Therefore", "Because", "I", "You")
CORPUS_OPENINGS = (
    "The", "In", "A", "When", "It", "He", "She", "They", "We", "After", "During", "Although", "For", "This", "His",
    "Her", "One", "Many", "Most", "Some", "As", "On", "At", "By", "From", "However", "There", "Since", "Before",
    "While", "If", "According to",
)  # fmt: skip


def sample_contexts(
    generate: Generate, tokenizer: PreTrainedTokenizerBase, style: Literal["memit", "rome"], key: Array
) -> tuple[str, ...]:
    """The bare prompt (""), then sampled prefixes: 5 of 10 tokens (memit), or 10 of 5 and 10 of 10 (rome)."""
    if style == "memit":
        return ("", *_continue(generate, tokenizer, MEMIT_OPENINGS, 10, key))
    short, long = jax.random.split(key)
    openings = MEMIT_OPENINGS * 2
    return (
        "",
        *_continue(generate, tokenizer, openings, 5, short),
        *_continue(generate, tokenizer, openings, 10, long),
    )


def sample_corpus(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    length: int,
    key: Array,
    rows: int = 64,
) -> Int[np.ndarray, "N length"]:
    """At least `tokens` tokens of the model's own text, in rows of `length` that start with common openings."""
    blocks, count = [], -(-tokens // length)
    for start in range(0, count, rows):
        openings = [CORPUS_OPENINGS[i % len(CORPUS_OPENINGS)] for i in range(start, start + rows)]
        prompt, valid = _right_aligned([_ids(tokenizer, text) for text in openings])
        key, draw = jax.random.split(key)
        written = np.asarray(generate(prompt, valid, length, draw))
        joined = [np.concatenate([p[v], w])[:length] for p, v, w in zip(prompt, valid, written, strict=True)]
        blocks.append(np.stack(joined))
    return np.concatenate(blocks)[:count].astype(np.int32)


def _continue(
    generate: Generate, tokenizer: PreTrainedTokenizerBase, openings: tuple[str, ...], steps: int, key: Array
) -> list[str]:
    """Each opening with `steps` more tokens, on one line."""
    prompt, valid = _right_aligned([_ids(tokenizer, text) for text in openings])
    written = np.asarray(generate(prompt, valid, steps, key))
    # Decoded with its opening: alone, a SentencePiece text loses the space before its first word.
    whole = [[*p[v], *w] for p, v, w in zip(prompt, valid, written, strict=True)]
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in whole]
    return [" ".join(text.split()).rstrip(" .") for text in texts]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [*leading_ids(tokenizer), *tokenizer(START + text, add_special_tokens=False)["input_ids"]]


def _right_aligned(rows: list[list[int]]) -> tuple[Int[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
    width = max(map(len, rows))
    tokens, valid = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], valid[i, width - len(row) :] = row, True
    return tokens, valid
