"""The prompts on which vectors inside a model are compared, by name."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.data.encode import encode_requests
from jaxedit.data.facts import Fact
from jaxedit.data.prompts import encode_prompts
from jaxedit.data.tokens import leading_ids
from jaxedit.diagnostics.activations import (
    FACT_POSITIONS,
    TEXT_POSITIONS,
    Activations,
    Prompts,
    collect,
    fact_prompts,
    text_prompts,
    without_first,
)
from jaxedit.models.model import Model
from jaxedit.models.sources import Checkpoint
from jaxedit.pipeline.spread import spread
from jaxedit.types import Params

TEXT_LENGTH = 32  # tokens of a row of neutral text
TOGETHER = 32  # prompts of one forward pass


class PromptSet(NamedTuple):
    """Prompts, and the names of the places where they are looked at."""

    prompts: Prompts
    positions: tuple[str, ...]


def prompt_sets(
    facts: Sequence[Fact], checkpoint: Checkpoint, count: int, text: Path | None = None
) -> dict[str, PromptSet]:
    """Sets "edited" (prompts of the facts), "neighborhood" (theirs about other subjects, if any), and "text".

    `count` of each at most, evenly spread over the facts, or from the start of the text. Means leave the
    first token out (`without_first`).
    """
    limit, tokenizer = checkpoint.model.config.max_positions, checkpoint.tokenizer
    chosen = spread(facts, count)
    requests = encode_requests(chosen, tokenizer, ("",), max_length=limit)
    found = {"edited": PromptSet(fact_prompts(requests), FACT_POSITIONS)}
    others = list(dict.fromkeys(prompt for fact in facts for prompt in fact.neighborhood))
    if others:
        rows = encode_prompts(spread(others, count), tokenizer, max_length=limit)
        found["neighborhood"] = PromptSet(text_prompts(*map(jnp.asarray, rows)), TEXT_POSITIONS)
    if text is not None:
        length = min(TEXT_LENGTH, limit)
        lead = leading_ids(tokenizer)
        blocks = token_blocks(read_text(text), tokenizer, length, count * (length - len(lead)), lead)
        valid = np.ones(blocks.shape, bool)
        found["text"] = PromptSet(text_prompts(jnp.asarray(blocks), jnp.asarray(valid)), TEXT_POSITIONS)
    return {name: PromptSet(without_first(one.prompts), one.positions) for name, one in found.items()}


class Collector:
    """`collect` of any number of prompts, compiled once for each set and kept for all steps."""

    def __init__(self, model: Model, vectors: Sequence[str]):
        self._step = jax.jit(functools.partial(collect, model, vectors=tuple(vectors)))

    def __call__(self, params: Params, prompts: Prompts) -> Activations:
        """The vectors on the host."""
        count = len(prompts.tokens)
        size = min(TOGETHER, count)
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            part = self._step(params, jax.tree.map(lambda x: np.asarray(x)[rows], prompts))  # noqa: B023
            parts.append(jax.tree.map(lambda x: np.asarray(x)[:, :, : count - start], part))  # noqa: B023
        return jax.tree.map(lambda *x: np.concatenate(x, axis=2), *parts)


def of_sets(collector: Collector, params: Params, sets: Mapping[str, PromptSet]) -> dict[str, Activations]:
    """The vectors of every set."""
    return {name: collector(params, one.prompts) for name, one in sets.items()}
