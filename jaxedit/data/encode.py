"""Facts to `Requests`: what an editor reads, split at the lookup token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.data.facts import Fact
from jaxedit.data.shapes import RequestShape, ladder
from jaxedit.data.tokens import Tokenizer, Tokens, find_lookup, leading_ids, target_ids, tokenize
from jaxedit.errors import FactError
from jaxedit.types import Requests

SMALLEST_PREFIX = 8


class _Row(NamedTuple):
    ids: list[int]  # leading special tokens and prompt
    lookup: int  # index of the lookup token in `ids`


class _Encoded(NamedTuple):
    rows: list[_Row]  # the contexts, then the KL row (which ends at its lookup token)
    target: list[int]


def join_context(context: str, prompt: str) -> str:
    """A prompt behind a context as ROME joins them, `"{context}. {prompt}"`; "" is the bare prompt."""
    return f"{context}. {prompt}" if context else prompt


def encode_requests(
    facts: Sequence[Fact],
    tokenizer: Tokenizer,
    contexts: Sequence[str] = ("",),
    *,
    max_length: int,
    shape: RequestShape | None = None,
    cases: Sequence[int] | None = None,
) -> Requests:
    """Tokenise B facts in C contexts into numpy arrays (int32, bool, float32) laid out as `Requests`.

    Rows 0..C-1 are the contexts (the first is "", the bare prompt), row C is "{subject} is a" up to the
    lookup token. Special tokens that the tokenizer puts before a text start every row, once. P, S and T
    are `shape`, or else the least steps of the ladder that hold all facts. `cases` are the facts'
    positions in their fact set, 0..B-1 where not given.

    Raises:
        FactError: no facts; contexts that do not begin with ""; a slow tokenizer; a subject that is not
            found; a row longer than `max_length`, or than `shape` allows (names fact, length and limit).
    """
    encoded = _encode(facts, tokenizer, contexts, max_length)
    needed = _needed(encoded)
    if shape is not None:
        _require_fit(facts, encoded, shape)
    if cases is not None and len(cases) != len(facts):
        raise FactError(f"{len(cases)} case numbers were given for {len(facts)} facts: give one for each")
    numbers = np.arange(len(facts)) if cases is None else np.asarray(cases)
    return _pack(encoded, shape or needed, numbers.astype(np.int32))


def request_shape(
    facts: Sequence[Fact],
    tokenizer: Tokenizer,
    contexts: Sequence[str] = ("",),
    *,
    max_length: int,
) -> RequestShape:
    """The least shape on the ladder that holds these facts in these contexts; errors as `encode_requests`."""
    return _needed(_encode(facts, tokenizer, contexts, max_length))


def _encode(
    facts: Sequence[Fact], tokenizer: Tokenizer, contexts: Sequence[str], max_length: int
) -> list[_Encoded]:
    if not facts:
        raise FactError("there are no facts to encode: give at least one")
    if not contexts or contexts[0] != "":
        raise FactError(
            f"the first context must be '' (the bare prompt), found {list(contexts[:1])}: put '' first"
        )
    joined = [join_context(context, fact.prompt) for fact in facts for context in contexts]
    kl = [f"{fact.subject} is a" for fact in facts]
    tokens = tokenize(tokenizer, (*joined, *kl))
    targets = target_ids(tokenizer, ((fact.prompt, fact.target_new) for fact in facts))
    lead = leading_ids(tokenizer)
    result = []
    for i, fact in enumerate(facts):
        rows = [
            _row(tokens, text, len(text) - len(fact.prompt), fact, lead)
            for text in joined[i * len(contexts) : (i + 1) * len(contexts)]
        ]
        ids, lookup = _row(tokens, kl[i], 0, fact, lead)
        result.append(
            _Encoded([*rows, _Row(ids[: lookup + 1], lookup)], targets[fact.prompt, fact.target_new])
        )
        _require_length(fact, result[-1], max_length)
    return result


def _row(tokens: dict[str, Tokens], text: str, begin: int, fact: Fact, lead: list[int]) -> _Row:
    found = tokens[text]
    try:
        lookup = find_lookup(found, text, fact.subject, begin)
    except FactError as error:
        raise FactError(f"fact {fact.id!r}: {error}") from None
    return _Row([*lead, *found.ids], len(lead) + lookup)


def _require_length(fact: Fact, encoded: _Encoded, max_length: int) -> None:
    longest = max(len(row.ids) for row in encoded.rows) + len(encoded.target) - 1
    if longest > max_length:
        raise FactError(
            f"fact {fact.id!r}: prompt, context and target are {longest} tokens long, the model takes"
            f" {max_length}: shorten the prompt or the contexts, or leave the fact out"
        )


def _sizes(encoded: _Encoded) -> RequestShape:
    more = len(encoded.target) - 1
    return RequestShape(
        P=max(row.lookup for row in encoded.rows),
        S=max(len(row.ids) - row.lookup for row in encoded.rows[:-1]) + more,
        T=len(encoded.target),
    )


def _needed(encoded: Sequence[_Encoded]) -> RequestShape:
    sizes = [_sizes(item) for item in encoded]
    p, s, t = (max(column) for column in zip(*sizes, strict=True))
    return RequestShape(ladder(p, SMALLEST_PREFIX), ladder(s), ladder(t))


def _require_fit(facts: Sequence[Fact], encoded: Sequence[_Encoded], shape: RequestShape) -> None:
    for fact, item in zip(facts, encoded, strict=True):
        needs = _sizes(item)
        if any(need > given for need, given in zip(needs, shape, strict=True)):
            raise FactError(
                f"fact {fact.id!r} needs {needs} and does not fit the shape given, {shape}: give a larger one"
            )


def _pack(encoded: Sequence[_Encoded], shape: RequestShape, cases: np.ndarray) -> Requests:
    b, r = len(encoded), len(encoded[0].rows)
    p, s, t = shape
    prefix, tail = np.zeros((b, r, p), np.int32), np.zeros((b, r, s), np.int32)
    prefix_size, tail_size = np.zeros((b, r, 1), np.int32), np.zeros((b, r, 1), np.int32)
    target, target_size = np.zeros((b, t), np.int32), np.zeros((b, 1), np.int32)
    first = np.zeros((b, r - 1, 1), np.int32)  # tail index of the prompt's last token
    for i, (rows, ids) in enumerate(encoded):
        target[i, : len(ids)], target_size[i] = ids, len(ids)
        for j, (tokens, lookup) in enumerate(rows):
            rest = tokens[lookup:]
            if j < r - 1:
                first[i, j] = len(rest) - 1
                rest = rest + ids[:-1]
            prefix[i, j, p - lookup :] = tokens[:lookup]
            tail[i, j, : len(rest)] = rest
            prefix_size[i, j], tail_size[i, j] = lookup, len(rest)
    steps = np.arange(t, dtype=np.int32)
    fields: dict[str, Any] = {
        "prefix": prefix,
        "prefix_mask": np.arange(p) >= p - prefix_size,
        "tail": tail,
        "tail_mask": np.arange(s) < tail_size,
        "target": target,
        "target_mask": steps < target_size,
        "predict_at": first + np.minimum(steps, target_size - 1)[:, None, :],
        "weight": np.ones(b, np.float32),
        "case": cases,
    }
    return Requests(**fields)
