"""Multiple-choice questions to a `Quiz`: what their prompts share once, the rest in batches by length."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.data.shapes import ladder
from jaxedit.data.tasks import Question
from jaxedit.data.tokens import Tokenizer, leading_ids, target_ids, tokenize
from jaxedit.errors import ConfigError, FactError
from jaxedit.types import Questions, Quiz

SMALLEST_ROW = 32  # fewer lengths, fewer programs


class _Item(NamedTuple):
    prompt: list[int]
    choices: list[list[int]]
    gold: int

    def row(self, shared: int) -> int:
        """Tokens of the row where the first `shared` are not in it."""
        return len(self.prompt) - shared + sum(len(ids) - 1 for ids in self.choices)


class _Sizes(NamedTuple):
    P: int
    O: int  # noqa: E741
    T: int


def encode_quizzes(
    sets: Mapping[str, Sequence[Question]], tokenizer: Tokenizer, *, max_length: int, batch: int = 16
) -> dict[str, Quiz]:
    """Tokenise sets of questions into numpy arrays (int32, bool) laid out as `Quiz`, by the names of the sets.

    P, O and T are common to all sets and L climbs the ladder, so that few programs are compiled for all of them.
    Questions whose prompt and longest choice are more than `max_length` tokens are left out and counted.

    Raises:
        ConfigError: `batch` is below 1. FactError: a slow tokenizer; a set without questions, or all too long.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; it must be at least 1")
    found = {name: _encode(name, questions, tokenizer, max_length) for name, questions in sets.items()}
    shared = {name: _shared([item.prompt for item in items]) for name, items in found.items()}
    choices = [ids for items in found.values() for item in items for ids in item.choices]
    sizes = _Sizes(
        P=ladder(max(shared.values(), default=0)) if any(shared.values()) else 0,
        O=max((len(item.choices) for items in found.values() for item in items), default=0),
        T=ladder(max(map(len, choices), default=1)),
    )
    return {
        name: _pack(items, shared[name], sizes, batch, len(sets[name]) - len(items))
        for name, items in found.items()
    }


def _encode(name: str, questions: Sequence[Question], tokenizer: Tokenizer, max_length: int) -> list[_Item]:
    if not questions:
        raise FactError(f"task {name!r} has no questions: give at least one")
    tokens = tokenize(tokenizer, (question.text for question in questions))
    words = target_ids(tokenizer, ((one.text, choice) for one in questions for choice in one.choices))
    lead = leading_ids(tokenizer)
    items = [
        _Item([*lead, *tokens[one.text].ids], [words[one.text, choice] for choice in one.choices], one.gold)
        for one in questions
    ]
    lengths = [len(item.prompt) + max(map(len, item.choices)) - 1 for item in items]
    if min(lengths) > max_length:
        raise FactError(
            f"{questions[0].where}: the prompts of task {name!r} are {min(lengths)} tokens long and more, the "
            f"model takes {max_length}: ask with fewer shots"
        )
    return [item for item, length in zip(items, lengths, strict=True) if length <= max_length]


def _shared(prompts: list[list[int]]) -> int:
    """How many first tokens all prompts have in common; at least one of each prompt is kept back."""
    first, last = min(prompts), max(prompts)  # what these share all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(same, min(map(len, prompts)) - 1)


def _pack(items: Sequence[_Item], shared: int, sizes: _Sizes, batch: int, left_out: int) -> Quiz:
    prefix: Any = np.zeros(sizes.P, np.int32)
    prefix[:shared] = items[0].prompt[:shared]
    order = sorted(range(len(items)), key=lambda i: -items[i].row(shared))  # the batch not full: the shortest
    batches = []
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = ladder(items[chosen[0]].row(shared), SMALLEST_ROW)
        batches.append(_batch(items, chosen, shared, length, sizes, batch))
    gold: Any = np.array([item.gold for item in items], np.int32)
    mask: Any = np.arange(sizes.P) < shared
    return Quiz(prefix, mask, tuple(batches), gold, left_out)


def _batch(
    items: Sequence[_Item], chosen: Sequence[int], shared: int, length: int, sizes: _Sizes, batch: int
) -> Questions:
    _, o, t = sizes
    tokens, position = np.zeros((batch, length), np.int32), np.zeros((batch, length), np.int32)
    branch = np.full((batch, length), -1, np.int32)
    branch[:, 0] = 0  # also on padding rows, which so keep one token to attend to
    target, count = np.zeros((batch, o, t), np.int32), np.zeros((batch, o, 1), np.int32)
    predict_at = np.zeros((batch, o, t), np.int32)
    number: Any = np.full(batch, -1, np.int32)
    number[: len(chosen)] = chosen
    for row, index in enumerate(chosen):
        prompt, choices, _ = items[index]
        rest = prompt[shared:]
        end = at = len(rest)
        tokens[row, :end], position[row, :end] = rest, np.arange(shared, len(prompt))
        branch[row, :end] = 0
        predict_at[row] = end - 1
        for option, ids in enumerate(choices):
            more = len(ids) - 1
            target[row, option, : len(ids)], count[row, option] = ids, len(ids)
            tokens[row, at : at + more] = ids[:-1]
            position[row, at : at + more] = np.arange(len(prompt), len(prompt) + more)
            branch[row, at : at + more] = option + 1
            predict_at[row, option, 1 : len(ids)] = np.arange(at, at + more)
            at += more
    fields: Any = (tokens, position, branch, target, np.arange(t) < count, predict_at, number)
    return Questions._make(fields)
