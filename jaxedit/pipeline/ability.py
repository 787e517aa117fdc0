"""What the model of a stored run can still do, at any of its steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.configs import require_at_least
from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.data.probes import encode_probes
from jaxedit.data.prompts import PromptRows, encode_prompts
from jaxedit.data.questions import encode_quizzes
from jaxedit.data.tasks import FewShot, few_shot, load_tasks
from jaxedit.errors import ConfigError
from jaxedit.evaluation.ability import Ability, ability
from jaxedit.evaluation.drift import Drift, drift
from jaxedit.evaluation.edits import score_all
from jaxedit.evaluation.entropy import generation_entropy
from jaxedit.evaluation.generation import sample
from jaxedit.evaluation.perplexity import perplexity
from jaxedit.evaluation.retention import AgeGroup, by_age
from jaxedit.models.sources import Checkpoint
from jaxedit.pipeline.history import trajectory
from jaxedit.pipeline.prepare import Prepared, Report, quiet
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import Params, Quiz


@dataclass(frozen=True)
class AbilityConfig:
    """What to ask, fully specified: the same configuration gives the same numbers."""

    tasks: tuple[Path, ...] = ()
    """Files of few-shot tasks, or folders of them: sst2.json, mrpc.json, cola.json, rte.json, mmlu.json, nli.json,
    sentiment_analysis.json, dialogue.json. None are asked by default."""
    few_shot: FewShot = field(default_factory=FewShot)
    """Which rows of a task are asked, and which are shown answered before them."""
    text: Path | None = None
    """Text file or folder for perplexity and drift."""
    text_tokens: int = 8192
    """So many tokens from the text's start."""
    block: int = 256
    """Tokens of a block; nothing before its block is seen by a token."""
    retention: bool = True
    """Score the facts written so far, by age."""
    groups: int = 5
    """Groups of ages."""
    generations: int = 0
    """Texts to write, for their entropy: what follows generation prompts of the first facts, or their prompts."""
    generated: int = 100
    """Tokens of each."""
    seed: int = 0
    """Of these texts; each token is drawn among the five likeliest."""
    batch: int = 16
    """Questions, blocks of text, or texts to write, of one forward pass."""


class AbilityAt(NamedTuple):
    """The model after some updates."""

    step: int
    facts: int  # written so far
    tasks: dict[str, Ability]
    perplexity: float | None
    drift: Drift | None  # from the model before the first update
    entropy: float | None  # of generated texts
    retention: list[AgeGroup]  # the youngest facts first


def ability_at(
    path: str | Path, steps: Iterable[int], config: AbilityConfig = AbilityConfig(), report: Report = quiet
) -> Iterator[AbilityAt]:
    """What a run's model can do after each of the steps given; step 0 is the model before the first update.

    Raises:
        RunError: no such run or step. FactError: a task or a text cannot be used. ConfigError: there is nothing to
        ask, or a number out of range.
    """
    if not (config.tasks or config.text or config.generations or config.retention):
        raise ConfigError("nothing is asked: name --tasks or a --text, or leave retention on")
    require_at_least(config, text_tokens=1, block=1, groups=1, generations=0, generated=1, batch=1)
    chosen, stored = sorted(set(steps)), RunFolder.open(path)
    for step in chosen:
        stored.require_step(step)
    found, _, prepared = trajectory(path, report)
    checkpoint, frozen = prepared.checkpoint, prepared.params.frozen
    model, first = checkpoint.model, Params(found.at(0), frozen)
    quizzes, blocks = quizzes_of(config, checkpoint), blocks_of(config, checkpoint)
    written, speaker = _Written(found.folder, prepared), _Speaker(config, prepared)
    for done, (step, now) in enumerate(found.walk(chosen)):
        report("asking the model", done, len(chosen))
        params = Params(now, frozen)
        yield AbilityAt(
            step,
            written.count(step),
            {name: ability(model, params, quiz) for name, quiz in quizzes.items()},
            None if blocks is None else perplexity(model, params, blocks, config.batch),
            None if blocks is None else drift(model, first, params, blocks, config.batch),
            speaker.entropy(params) if config.generations else None,
            written.by_age(step, params, config.groups) if config.retention else [],
        )
    report("asking the model", len(chosen), len(chosen))


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
    return token_blocks(read_text(config.text), checkpoint.tokenizer, length, limit=config.text_tokens)


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
    """The facts that a run has written: in which update, and how they scored right after it."""

    def __init__(self, folder: RunFolder, prepared: Prepared):
        applied = [line for line in folder.metrics() if line["applied"]]
        pairs = [(name, line["update"] + 1) for line in applied for name in line["facts"]]
        self._model, self._update = prepared.checkpoint.model, np.array([at for _, at in pairs], int)
        self._then = {
            score: np.array([x for line in applied for x in line["scores"][score]], float)
            for score in (applied[0]["scores"] if applied else ())
        }
        facts = {fact.id: fact for fact in prepared.facts}
        limit = prepared.checkpoint.model.config.max_positions
        self._probes: Any = None
        if pairs:
            asked = [facts[name] for name, _ in pairs]
            self._probes = encode_probes(asked, prepared.checkpoint.tokenizer, max_length=limit)

    def count(self, step: int) -> int:
        return int((self._update <= step).sum())

    def by_age(self, step: int, params: Params, groups: int) -> list[AgeGroup]:
        """Facts are in the order of their updates, so that those written so far are the first."""
        count = self.count(step)
        if not count:
            return []
        probes = jax.tree.map(lambda x: x[:count], self._probes)
        now = score_all(self._model, params, probes)
        then = {name: values[:count] for name, values in self._then.items()}
        return by_age(now, then, step - self._update[:count], groups)
