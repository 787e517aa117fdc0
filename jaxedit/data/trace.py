"""Facts to `TracePrompts`: what causal tracing reads, split at the subject's first token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.data.known import KnownFact
from jaxedit.data.shapes import ladder
from jaxedit.data.tokens import Tokenizer, find_span, leading_ids, target_ids, tokenize
from jaxedit.errors import FactError
from jaxedit.types import (
    FIRST_AFTER,
    FIRST_SUBJECT,
    FURTHER,
    LAST,
    LAST_SUBJECT,
    MIDDLE_SUBJECT,
    TracePrompts,
)


class _Row(NamedTuple):
    ids: list[int]  # leading special tokens and prompt
    first: int  # of the subject's tokens in `ids`
    last: int
    target: int


def encode_trace(facts: Sequence[KnownFact], tokenizer: Tokenizer, *, max_length: int) -> TracePrompts:
    """Tokenise B prompts into numpy arrays (int32, bool, float32) laid out as `TracePrompts`.

    The target is the first token of `" " + object`. P and S are the least steps of the ladder that hold all
    prompts. `case` is the fact's position in `facts`.

    Raises:
        FactError: no facts; a slow tokenizer; a subject that is not found; a prompt longer than `max_length`.
    """
    if not facts:
        raise FactError("there are no facts to trace: give at least one")
    return _pack(_encode(facts, tokenizer, max_length))


def position_kinds(subject: int, length: int) -> list[int]:
    """The kind of each of `length` tokens from the subject's first on, `subject` of which are the subject's.

    Each token has one kind. The subject's last token comes before its first, and the prompt's last token
    before the one that follows the subject, where they are the same.
    """
    kinds = [FIRST_SUBJECT, *[MIDDLE_SUBJECT] * (subject - 2)][: subject - 1]
    rest = length - subject
    after = [FIRST_AFTER, *[FURTHER] * (rest - 2)][: rest - 1] if rest else []
    return [*kinds, LAST_SUBJECT, *after, *([LAST] if rest else [])]


def _encode(facts: Sequence[KnownFact], tokenizer: Tokenizer, max_length: int) -> list[_Row]:
    tokens = tokenize(tokenizer, (fact.prompt for fact in facts))
    objects = target_ids(tokenizer, ((fact.prompt, fact.object) for fact in facts))
    lead = leading_ids(tokenizer)
    rows = []
    for fact in facts:
        found = tokens[fact.prompt]
        try:
            first, last = find_span(found, fact.prompt, fact.subject)
        except FactError as error:
            raise FactError(f"fact {fact.id!r}: {error}") from None
        row = _Row(
            [*lead, *found.ids], len(lead) + first, len(lead) + last, objects[fact.prompt, fact.object][0]
        )
        if len(row.ids) > max_length:
            raise FactError(
                f"fact {fact.id!r}: the prompt is {len(row.ids)} tokens long, the model takes {max_length}:"
                " shorten it, or leave the fact out"
            )
        rows.append(row)
    return rows


def _pack(rows: Sequence[_Row]) -> TracePrompts:
    count = len(rows)
    p = ladder(max(row.first for row in rows))
    s = ladder(max(len(row.ids) - row.first for row in rows))
    fields: dict[str, Any] = {
        "prefix": np.zeros((count, p), np.int32),
        "prefix_mask": np.zeros((count, p), bool),
        "tail": np.zeros((count, s), np.int32),
        "tail_mask": np.zeros((count, s), bool),
        "kind": np.full((count, s), -1, np.int32),
        "target": np.array([row.target for row in rows], np.int32),
        "weight": np.ones(count, np.float32),
        "case": np.arange(count, dtype=np.int32),
    }
    for i, (ids, first, last, _) in enumerate(rows):
        tail = ids[first:]
        fields["prefix"][i, p - first :] = ids[:first]
        fields["prefix_mask"][i, p - first :] = True
        fields["tail"][i, : len(tail)] = tail
        fields["tail_mask"][i, : len(tail)] = True
        fields["kind"][i, : len(tail)] = position_kinds(last - first + 1, len(tail))
    return TracePrompts(**fields)
