"""Facts to `Probes`: what evaluation reads, both targets of a prompt packed into one row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.data.facts import Fact
from jaxedit.data.shapes import ProbeShape, ladder
from jaxedit.data.tokens import Tokenizer, leading_ids, target_ids, tokenize
from jaxedit.errors import FactError
from jaxedit.types import NEIGHBORHOOD, PARAPHRASE, REWRITE, Probes

SMALLEST_ROW = 8


class _Row(NamedTuple):
    kind: int
    prompt: list[int]
    new: list[int]
    true: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.new) + len(self.true) - 2


def encode_probes(
    facts: Sequence[Fact],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    shape: ProbeShape | None = None,
) -> Probes:
    """Tokenise what B facts are scored on into numpy arrays (int32, bool) laid out as `Probes`.

    Rows: the prompt, its paraphrases, its neighborhood, then padding up to N. Every row is read for
    (target_new, target_true); a neighborhood row with an answer of its own has that as its true target.
    L and T are the least steps of the ladder that hold all rows, N the most rows of a fact; or `shape`.

    Raises:
        FactError: no facts; a slow tokenizer; a prompt with either target longer than `max_length`, or a
            fact that does not fit `shape` (names fact, length and limit).
    """
    rows = _encode(facts, tokenizer, max_length)
    if shape is not None:
        _require_fit(facts, rows, shape)
    return _pack(rows, shape or _needed(rows))


def probe_shape(facts: Sequence[Fact], tokenizer: Tokenizer, *, max_length: int) -> ProbeShape:
    """The least shape that holds the probes of these facts; errors as `encode_probes`."""
    return _needed(_encode(facts, tokenizer, max_length))


def _questions(fact: Fact) -> list[tuple[int, str, str]]:
    """Kind, prompt and true answer of every probe of a fact."""
    own = [(REWRITE, fact.prompt), *((PARAPHRASE, text) for text in fact.paraphrases)]
    others = zip(fact.neighborhood, fact.neighborhood_answers(), strict=True)
    return [(kind, text, fact.target_true) for kind, text in own] + [(NEIGHBORHOOD, *pair) for pair in others]


def _encode(facts: Sequence[Fact], tokenizer: Tokenizer, max_length: int) -> list[list[_Row]]:
    if not facts:
        raise FactError("there are no facts to encode: give at least one")
    questions = [_questions(fact) for fact in facts]
    tokens = tokenize(tokenizer, (text for asked in questions for _, text, _ in asked))
    pairs = (
        (text, target)
        for fact, asked in zip(facts, questions, strict=True)
        for _, text, true in asked
        for target in (fact.target_new, true)
    )
    targets = target_ids(tokenizer, pairs)
    lead = leading_ids(tokenizer)
    result = []
    for fact, asked in zip(facts, questions, strict=True):
        rows = [
            _Row(kind, [*lead, *tokens[text].ids], targets[text, fact.target_new], targets[text, true])
            for kind, text, true in asked
        ]
        for row, (_, text, _) in zip(rows, asked, strict=True):
            _require_length(fact, text, row, max_length)
        result.append(rows)
    return result


def _require_length(fact: Fact, text: str, row: _Row, max_length: int) -> None:
    if not row.prompt:
        raise FactError(
            f"fact {fact.id!r}: the tokenizer gives no tokens for prompt {text!r}; use another prompt"
        )
    longest = len(row.prompt) + max(len(row.new), len(row.true)) - 1
    if longest > max_length:
        raise FactError(
            f"fact {fact.id!r}: prompt {text[:60]!r}... and target are {longest} tokens long, the model takes"
            f" {max_length}: shorten the prompt or leave it out"
        )


def _sizes(rows: Sequence[_Row]) -> ProbeShape:
    targets = (max(len(row.new), len(row.true)) for row in rows)
    return ProbeShape(N=len(rows), L=max(row.length for row in rows), T=max(targets))


def _needed(facts_rows: Sequence[Sequence[_Row]]) -> ProbeShape:
    n, length, t = (max(column) for column in zip(*map(_sizes, facts_rows), strict=True))
    return ProbeShape(n, ladder(length, SMALLEST_ROW), ladder(t))


def _require_fit(facts: Sequence[Fact], facts_rows: Sequence[Sequence[_Row]], shape: ProbeShape) -> None:
    for fact, rows in zip(facts, facts_rows, strict=True):
        needs = _sizes(rows)
        if any(need > given for need, given in zip(needs, shape, strict=True)):
            raise FactError(
                f"fact {fact.id!r} needs {needs} and does not fit the shape given, {shape}: give a larger one"
            )


def _pack(facts_rows: Sequence[Sequence[_Row]], shape: ProbeShape) -> Probes:
    b = len(facts_rows)
    n, length, t = shape
    tokens, position = np.zeros((b, n, length), np.int32), np.zeros((b, n, length), np.int32)
    branch = np.full((b, n, length), -1, np.int32)
    branch[:, :, 0] = 0  # also on padding rows, which so keep one token to attend to
    target, sizes = np.zeros((b, n, 2, t), np.int32), np.zeros((b, n, 2, 1), np.int32)
    predict_at = np.zeros((b, n, 2, t), np.int32)
    kind = np.full((b, n), -1, np.int32)
    for i, rows in enumerate(facts_rows):
        for j, row in enumerate(rows):
            kind[i, j] = row.kind
            start = len(row.prompt)
            tokens[i, j, :start], position[i, j, :start], branch[i, j, :start] = (
                row.prompt,
                np.arange(start),
                0,
            )
            predict_at[i, j] = start - 1
            at = start
            for side, ids in enumerate((row.new, row.true)):
                target[i, j, side, : len(ids)], sizes[i, j, side] = ids, len(ids)
                more = len(ids) - 1
                tokens[i, j, at : at + more] = ids[:-1]
                position[i, j, at : at + more] = np.arange(start, start + more)
                branch[i, j, at : at + more] = side + 1
                predict_at[i, j, side, 1 : len(ids)] = np.arange(at, at + more)
                at += more
    return Probes._make((tokens, position, branch, target, np.arange(t) < sizes, predict_at, kind))
