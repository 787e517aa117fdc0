"""Strings to token rows: prompts under contexts, the lookup index, targets, padding."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class Fact(NamedTuple):
    """One requested edit; `prompt` already contains `subject`, `target` has no leading space."""

    prompt: str
    subject: str
    target: str


class Row(NamedTuple):
    """Token ids of one text and the index of its lookup token."""

    ids: list[int]
    lookup: int


class Batch(NamedTuple):
    """Rows padded on the right: ids [N, L], mask [N, L] (1 at real tokens), lookup [N]."""

    ids: Tensor
    mask: Tensor
    lookup: Tensor


def locate(tokenizer: PreTrainedTokenizerBase, text: str, subject: str, start: int = 0) -> int:
    """Index of the last token of the first occurrence of `subject` as a whole word.

    That is the last token whose characters include the last character of the subject, special tokens counted.
    Occurrences before character `start` do not count.
    """
    found = re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)").search(text, start)
    if found is None:
        raise ValueError(f"subject {subject!r} is not in {text[start:]!r} as a whole word")
    last = found.end() - 1
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(index for index, (begin, end) in enumerate(offsets) if begin <= last < end)


def prompt_row(tokenizer: PreTrainedTokenizerBase, fact: Fact, context: str = "") -> Row:
    """context + ". " + prompt, or the bare prompt for ""; the subject is sought in the prompt only."""
    prefix = context + ". " if context else ""
    text = prefix + fact.prompt
    return Row(list(tokenizer(text)["input_ids"]), locate(tokenizer, text, fact.subject, start=len(prefix)))


def kl_row(tokenizer: PreTrainedTokenizerBase, subject: str) -> Row:
    """ "{subject} is a"."""
    text = f"{subject} is a"
    return Row(list(tokenizer(text)["input_ids"]), locate(tokenizer, text, subject))


def target_ids(tokenizer: PreTrainedTokenizerBase, target: str) -> list[int]:
    """Ids of " " + target without special tokens."""
    return list(tokenizer(" " + target, add_special_tokens=False)["input_ids"])


def with_target(row: Row, target: list[int]) -> Row:
    """Teacher forcing: the target follows the prompt; its last token is only predicted, so it is no input."""
    return Row(row.ids + target[:-1], row.lookup)


def pad(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Pad on the right to the longest row.

    Causal attention never looks there, so nothing is masked: eager attention in float64 gives NaN to a token
    that sees nothing, such as padding whose window holds only padding.
    """
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.ones(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
    lookup = torch.tensor([row.lookup for row in rows])
    return Batch(ids.to(device), mask.to(device), lookup.to(device))
