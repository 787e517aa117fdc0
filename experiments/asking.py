"""What experiments ask of a model: what it still knows, understands and says."""

from typing import Any

import numpy as np

from jaxedit.data import Fact, load_facts
from jaxedit.data.probes import encode_probes
from jaxedit.evaluation.edits import score_all
from jaxedit.models.sources import Checkpoint
from jaxedit.pipeline import known_facts
from jaxedit.pipeline.asked import Asked
from jaxedit.pipeline.prepare import Prepared
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.trajectory.replay import Matrices
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import Params

Json = dict[str, Any]
AGES = 4  # groups of edits by age


def known_controls(controls: str, checkpoint: Checkpoint) -> list[Fact]:
    """The bare facts of a file that the unedited model knows."""
    facts = load_facts(controls)
    return [fact.bare() for fact in known_facts(facts, len(facts), checkpoint)]


class Asker:
    """Ability of the models of one run.

    `config` is what is asked at every step; `controls` names facts that the run does not edit; `first` are the
    matrices before the first update.
    """

    def __init__(
        self,
        config: AbilityConfig,
        controls: str | None,
        prepared: Prepared,
        folder: RunFolder,
        first: Matrices,
    ):
        self._prepared, self._folder = prepared, folder
        self._asked = Asked(config, prepared, first)
        self._aged = Asked(AbilityConfig(groups=AGES), prepared, first)
        self._controls = None
        if controls is not None:
            checkpoint = prepared.checkpoint
            self._controls = encode_probes(
                known_controls(controls, checkpoint),
                checkpoint.tokenizer,
                max_length=checkpoint.model.config.max_positions,
            )

    def ask(self, step: int, now: Matrices) -> Json:
        """By name: `recall`, the share of control facts whose true object is still the likeliest answer; perplexity
        of held-out text and KL from the unedited model there; entropy of generated texts; F1 of tasks, mean and each.
        """
        found, able = {}, self._asked.at(step, now, self._folder)
        if self._controls is not None:
            after = Params(now, self._prepared.params.frozen)
            scores = score_all(self._prepared.checkpoint.model, after, self._controls, batch=64)
            found["recall"] = float(scores["knows"].mean())
        if able.perplexity is not None and able.drift is not None:
            found |= {"perplexity": able.perplexity, "kl": able.drift.kl}
        if able.entropy is not None:
            found["entropy"] = able.entropy
        if able.tasks:
            each = {f"f1 {name}": task.likelihood.f1 for name, task in able.tasks.items()}
            found |= {"f1": float(np.mean(list(each.values()))), **each}
        return found

    def retention(self, step: int, now: Matrices) -> list[Json]:
        """What is left of the edits after this step, by age, the youngest first."""
        return [group._asdict() for group in self._aged.at(step, now, self._folder).retention]
