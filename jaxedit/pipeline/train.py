"""Training a hypernetwork on facts that no run edits."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.configs import require_at_least, require_plain_path
from jaxedit.data.facts import Fact
from jaxedit.data.sources import load_facts
from jaxedit.editors import Settings, method
from jaxedit.editors.hypernet import HyperConfig
from jaxedit.editors.registry import METHODS
from jaxedit.errors import ConfigError, FactError, RunError
from jaxedit.models.sources import load
from jaxedit.pipeline.prepare import Report, quiet
from jaxedit.training.files import NetFile, save_net
from jaxedit.training.hypernet import Trained, check, train_hypernetwork
from jaxedit.training.lessons import encode_lessons
from jaxedit.training.steps import TrainConfig

NETWORK, RECORD = "network.safetensors", "record.json"


@dataclass(frozen=True)
class TrainRun:
    """The training of a hypernetwork, fully specified: the same configuration gives the same network."""

    out: str = "runs/network"
    """Folder to write; an unfinished training in it goes on."""
    editor: str = "mend"
    """Editor that needs a network; `jaxedit editors` lists them."""
    settings: Settings = Settings()
    """Departures from the editor's preset."""
    model: str = "smollm2-135m"
    """Folder, hub id, or built-in name of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    facts: str = "world"
    """"world", or a file of facts with neighborhood prompts."""
    skip_invalid: bool = False
    """Leave out facts that cannot be used, instead of stopping."""
    count: int = 1000
    """How many facts to learn from: the last of the set, since runs edit the first."""
    held_out: int = 100
    """How many to stop by: those before them."""
    paraphrases: int = 1
    """Paraphrases of a fact to learn from, at most."""
    neighbors: int = 2
    """Neighborhood prompts of a fact to learn from, at most."""
    training: TrainConfig = TrainConfig()
    """The optimisation."""
    seed: int = 0
    """Of the network's start and the order of facts."""


class Outcome(NamedTuple):
    """What came of a training."""

    file: Path  # the network
    held_out: list[float]  # losses on the held-out facts; the first is that of the untrained network


class Split(NamedTuple):
    """Facts for a training."""

    learned: list[Fact]
    held_out: list[Fact]


def train(config: TrainRun, report: Report = quiet) -> Outcome:
    """Trains, or goes on with an unfinished training, and writes the network.

    Raises ConfigError, FactError and ModelError for what cannot work, RunError where the folder holds a finished
    network or another training.
    """
    out = Path(config.out)
    check_train(config)
    if (out / NETWORK).exists():
        raise RunError(f"{out / NETWORK} is trained already: choose another folder with --out")
    checkpoint = load(config.model, dtype=jnp.dtype(config.dtype))
    hyper = method(config.editor).configure(checkpoint.model.config, config.settings)
    split = split_facts(config)
    limit = checkpoint.model.config.max_positions
    learned = encode_lessons(split.learned, checkpoint.tokenizer, max_length=limit)
    held_out = encode_lessons(split.held_out, checkpoint.tokenizer, max_length=limit)
    check(config.training, learned)
    start = time.monotonic()
    trained = train_hypernetwork(
        checkpoint.model,
        checkpoint.params,
        learned,
        held_out,
        hyper,
        config.training,
        jax.random.key(config.seed),
        out,
        report,
    )
    content = record(config, hyper, trained, time.monotonic() - start)
    (out / RECORD).write_text(json.dumps(content, indent=1) + "\n")
    ids = [fact.id for fact in (*split.learned, *split.held_out)]
    save_net(
        out / NETWORK, NetFile(trained.hypernet, hyper), checkpoint.fingerprint, facts=config.facts, ids=ids
    )
    return Outcome(out / NETWORK, content["held_out"])


def check_train(config: TrainRun) -> None:
    """Raises ConfigError for settings that cannot work, before anything is loaded."""
    if not method(config.editor).needs_net:
        trained = ", ".join(name for name, row in METHODS.items() if row.needs_net)
        raise ConfigError(f"editor {config.editor!r} edits without a trained network; train one of {trained}")
    require_plain_path(config.out)
    require_at_least(config, count=1, held_out=1, paraphrases=0, neighbors=1)


def split_facts(config: TrainRun) -> Split:
    """The last facts of the set to learn from, those before them held out. Raises FactError for too few."""
    facts = load_facts(config.facts, skip_invalid=config.skip_invalid)
    wanted = config.count + config.held_out
    if len(facts) < wanted:
        raise FactError(
            f"{config.facts!r} has {len(facts)} facts but {config.count} to learn from and {config.held_out} held "
            f"out are asked for: lower --count or --held-out"
        )
    chosen = [
        dataclasses.replace(
            fact,
            paraphrases=fact.paraphrases[: config.paraphrases],
            neighborhood=fact.neighborhood[: config.neighbors],
            neighborhood_true=fact.neighborhood_true[: config.neighbors],
        )
        for fact in facts[-wanted:]
    ]
    return Split(chosen[config.held_out :], chosen[: config.held_out])


def record(config: TrainRun, hyper: HyperConfig, trained: Trained, seconds: float) -> dict[str, Any]:
    """Settings, both curves, and the time since the training was last begun or resumed."""
    return {
        "config": dataclasses.asdict(config),
        "editor": dataclasses.asdict(hyper),
        "losses": np.asarray(trained.losses, float).tolist(),
        "held_out": np.asarray(trained.held_out, float).tolist(),
        "seconds": seconds,
    }
