"""What is measured of a model, and when during a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxedit.configs import require_at_least
from jaxedit.data.tasks import FewShot
from jaxedit.diagnostics.controls import Match
from jaxedit.diagnostics.shifts import Group as VectorGroup
from jaxedit.diagnostics.weights import Group as WeightGroup
from jaxedit.errors import ConfigError

Vector = Literal["key", "mlp", "attention", "residual"]


@dataclass(frozen=True)
class MeasureConfig:
    """What to measure, fully specified: the same configuration gives the same numbers."""

    weights: tuple[WeightGroup, ...] = ("size", "drift", "leading", "subspace")
    """Groups of measures of every edited matrix; "spectrum" and "intruders" decompose it whole."""
    unedited: bool = False
    """The same of these projections in all other layers, once: the yardstick."""
    path: bool = True
    """Step, alignment and efficiency of every update up to the last of the steps, where updates are low rank."""
    activations: tuple[VectorGroup, ...] = ()
    """Groups of measures of vectors inside the model."""
    vectors: tuple[Vector, ...] = ("key", "mlp", "attention", "residual")
    """Which of them; the output of the final norm is always there."""
    k: int = 8
    """Dimension of singular and principal subspaces."""
    prompts: int = 128
    """Prompts of each set, at most."""
    text: Path | None = None
    """Text file or folder of a third, neutral set of prompts."""
    null: Match | None = "norm"
    """Beside every step the first model with a random change of the same norm, or of the same singular values."""
    seed: int = 0
    """Of the random change, of halvings, and of the solvers' starts."""


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


@dataclass(frozen=True)
class Watch:
    """What is measured while a run goes on: the numbers that `jaxedit measure` and `jaxedit ability` find later."""

    measure: bool = False
    """Matrices and vectors, into the run's folder with "-measures" behind its name."""
    ability: bool = False
    """What the model can still do, into the folder with "-ability"."""
    every: int = 100
    """Updates between two looks, a multiple of `chunk`; the first and the last model are looked at too."""
    measures: MeasureConfig = MeasureConfig()
    """What to measure."""
    questions: AbilityConfig = field(default_factory=AbilityConfig)
    """What to ask."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.measure or self.ability


def check_measures(config: MeasureConfig) -> None:
    """Raises ConfigError for numbers that cannot be."""
    require_at_least(config, k=1, prompts=1)


def check_questions(config: AbilityConfig) -> None:
    """Raises ConfigError where nothing is asked, and for numbers out of range."""
    if not (config.tasks or config.text or config.generations or config.retention):
        raise ConfigError("nothing is asked: name --tasks or a --text, or leave retention on")
    require_at_least(config, text_tokens=2, block=2, groups=1, generations=0, generated=1, batch=1)


def check_watch(watch: Watch, chunk: int, several: bool) -> None:
    """Raises ConfigError for what cannot be watched."""
    if not watch.wanted:
        return
    require_at_least(watch, every=1)
    if watch.every % chunk:
        raise ConfigError(f"watch.every is {watch.every}; it must be a multiple of chunk, {chunk}")
    if several:
        raise ConfigError("several processes cannot watch a run: measure it when it has ended")
    if watch.measure:
        check_measures(watch.measures)
    if watch.ability:
        check_questions(watch.questions)
