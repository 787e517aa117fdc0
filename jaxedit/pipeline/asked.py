"""What a run's model can still do after a step."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.data.probes import encode_probes
from jaxedit.data.prompts import PromptRows, encode_prompts
from jaxedit.data.questions import encode_quizzes
from jaxedit.data.tasks import few_shot, load_tasks
from jaxedit.data.tokens import leading_ids
from jaxedit.evaluation.ability import Ability, ability
from jaxedit.evaluation.drift import Comparison, Drift
from jaxedit.evaluation.edits import score_all
from jaxedit.evaluation.entropy import generation_entropy
from jaxedit.evaluation.generation import sample
from jaxedit.evaluation.retention import AgeGroup, by_age
from jaxedit.models.sources import Checkpoint
from jaxedit.pipeline.prepare import Prepared
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.trajectory.replay import Matrices
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import Params, Probes, Quiz


class AbilityAt(NamedTuple):
    """The model after some updates."""

    step: int
    facts: int  # written so far
    tasks: dict[str, Ability]
    perplexity: float | None
    drift: Drift | None  # from the model before the first update
    entropy: float | None  # of generated texts
    retention: list[AgeGroup]  # the youngest facts first


class Asked:
    """What is encoded once for all steps of a run; `first` are the matrices before the first update."""

    def __init__(self, config: AbilityConfig, prepared: Prepared, first: Matrices):
        self._config, self._prepared = config, prepared
        self._first = Params(first, prepared.params.frozen)
        self._quizzes = quizzes_of(config, prepared.checkpoint)
        self._blocks = blocks_of(config, prepared.checkpoint)
        self._speaker = _Speaker(config, prepared)
        self._lines: list[dict[str, Any]] = []
        self._chunks = 0  # whose lines these are

    def at(self, step: int, now: Matrices, folder: RunFolder) -> AbilityAt:
        """The model after a step of the run in `folder`, whose matrices are `now`."""
        config, model = self._config, self._prepared.checkpoint.model
        params, written = Params(now, self._prepared.params.frozen), _Written(self._log(folder), step)
        reading = None if self._text is None else self._text.read(params)
        return AbilityAt(
            step,
            len(written.names),
            {name: ability(model, params, quiz) for name, quiz in self._quizzes.items()},
            None if reading is None else reading.perplexity,
            None if reading is None else reading.drift,
            self._speaker.entropy(params) if config.generations else None,
            self._by_age(params, written) if config.retention and written.names else [],
        )

    def _log(self, folder: RunFolder) -> list[dict[str, Any]]:
        """Metric lines of the run so far; what was read before is not read again."""
        self._lines += folder.metrics(behind=self._chunks)
        self._chunks = len(folder.journal.chunks)
        return self._lines

    def _by_age(self, params: Params, written: "_Written") -> list[AgeGroup]:
        rows = np.array([self._rows[name] for name in written.names])
        probes = jax.tree.map(lambda x: x[rows], self._probes)
        now = score_all(self._prepared.checkpoint.model, params, probes)
        return by_age(now, written.then, written.age, self._config.groups)

    @functools.cached_property
    def _text(self) -> Comparison | None:
        """The text, once the model before the first update has read it."""
        model, blocks = self._prepared.checkpoint.model, self._blocks
        return None if blocks is None else Comparison(model, self._first, blocks, self._config.batch)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {fact.id: i for i, fact in enumerate(self._prepared.facts)}

    @functools.cached_property
    def _probes(self) -> Probes:
        """Of all facts of the run, so that scores are compiled for one shape."""
        checkpoint = self._prepared.checkpoint
        limit = checkpoint.model.config.max_positions
        return encode_probes(self._prepared.facts, checkpoint.tokenizer, max_length=limit)


def quizzes_of(config: AbilityConfig, checkpoint: Checkpoint) -> dict[str, Quiz]:
    """The tasks of a configuration, ready for a model, by name."""
    sets = {task.name: few_shot(task, config.few_shot) for task in load_tasks(config.tasks)}
    limit = checkpoint.model.config.max_positions
    return encode_quizzes(sets, checkpoint.tokenizer, max_length=limit, batch=config.batch)


def blocks_of(config: AbilityConfig, checkpoint: Checkpoint) -> np.ndarray | None:
    """The text of a configuration as blocks of tokens; None without one."""
    if config.text is None:
        return None
    length = min(config.block, checkpoint.model.config.max_positions)
    lead = leading_ids(checkpoint.tokenizer)
    return token_blocks(read_text(config.text), checkpoint.tokenizer, length, config.text_tokens, lead)


class _Speaker:
    """Writes texts, from the same prompts and random numbers with any parameters."""

    def __init__(self, config: AbilityConfig, prepared: Prepared):
        self._checkpoint, self._config = prepared.checkpoint, config
        self._prompts: list[PromptRows] = []
        texts = [text for fact in prepared.facts for text in (*fact.generation_prompts, fact.prompt)[:1]]
        chosen = texts[: config.generations]
        limit = prepared.checkpoint.model.config.max_positions - config.generated
        if chosen:
            rows = encode_prompts(chosen, prepared.checkpoint.tokenizer, max_length=limit)
            self._prompts = [
                PromptRows(rows.tokens[i : i + config.batch], rows.valid[i : i + config.batch])
                for i in range(0, len(chosen), config.batch)
            ]

    def entropy(self, params: Params) -> float:
        """`generation_entropy` of what follows the prompts."""
        model, tokenizer = self._checkpoint.model, self._checkpoint.tokenizer
        key, texts = jax.random.key(self._config.seed), []
        for i, rows in enumerate(self._prompts):
            by_rows = np.argsort(rows.valid, axis=1, kind="stable")  # right-aligned
            tokens, valid = (np.take_along_axis(x, by_rows, axis=1) for x in rows)
            drawn = sample(
                model, params, tokens, valid, self._config.generated, jax.random.fold_in(key, i), top_k=5
            )
            texts += [str(tokenizer.decode(row, skip_special_tokens=True)) for row in np.asarray(drawn)]
        return generation_entropy(texts)


class _Written:
    """The facts that a run has written up to a step: in which update, and how they scored right after it."""

    def __init__(self, lines: Sequence[dict[str, Any]], step: int):
        applied = [line for line in lines if line["applied"] and line["update"] < step]
        pairs = [(name, line["update"] + 1) for line in applied for name in line["facts"]]
        self.names, self.age = [name for name, _ in pairs], step - np.array([at for _, at in pairs], int)
        self.then = {
            score: np.array([x for line in applied for x in line["scores"][score]], float)
            for score in (applied[0]["scores"] if applied else ())
        }
