"""What the experiments share: their runs, made or gone on with, and what is measured of them."""

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import matplotlib as mpl
import numpy as np
from rich.console import Console

from experiments.asking import Asker, Json
from jaxedit.compiling import set_up_compiling
from jaxedit.data import Fact, dump_jsonl, load_facts
from jaxedit.data.corpus import read_text
from jaxedit.diagnostics.controls import Match, random_update
from jaxedit.disk import replace
from jaxedit.editors import METHODS, Settings
from jaxedit.linalg import added, frobenius
from jaxedit.models.sources import load
from jaxedit.moments import MomentSource
from jaxedit.pipeline import Limits, RunConfig, TextStream, known_facts, resume, run, trajectory
from jaxedit.pipeline.train import NETWORK, TrainRun, train
from jaxedit.pipeline.used import walk_used
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.report.figures import STYLE
from jaxedit.report.record import read_run
from jaxedit.training.steps import TrainConfig
from jaxedit.trajectory.replay import Matrices, Trajectory
from jaxedit.types import as_they_are

BLOCK = 64  # tokens of a block of held-out text
NULLS: dict[str, Match] = {"random": "norm", "turned": "spectrum"}
"""Null models: the first matrices, each with a random change that has this in common with the true one."""
T = TypeVar("T")
console = Console(stderr=True)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to edit."""

    editor: str
    settings: Settings = Settings()
    transforms: tuple[str, ...] = ()
    batch: int = 1
    asked: str = ""
    """Settings that its name departs by, as they were written."""

    @property
    def label(self) -> str:
        """How figures and tables call it."""
        editor = f"{self.editor}:{self.asked}" if self.asked else self.editor
        parts = [editor, *self.transforms, *([f"batch {self.batch}"] if self.batch != 1 else [])]
        return " + ".join(parts)


@dataclasses.dataclass(frozen=True)
class Study:
    """What all experiments have in common."""

    out: Path = Path("runs/study")
    results: Path | None = None
    """Where what was measured of runs is kept, by default beside them. What lies there is not run again."""
    model: str = "runs/small/llama"
    """Folder, hub id or built-in name; the files of `experiments.small_models` are sought beside a folder."""
    facts: str | None = None
    """Facts to edit; by default facts.jsonl beside the model's folder, else "world"."""
    controls: str | None = None
    """Facts that are never edited; by default controls.jsonl beside the model's folder."""
    text: str | None = None
    """Held-out text; by default held-out.txt beside the model's folder."""
    tasks: tuple[Path, ...] = ()
    """Few-shot tasks, as `jaxedit ability` takes them."""
    generations: int = 32
    """Texts to write for their entropy, of `generated` tokens each."""
    generated: int = 64
    corpus: str | None = None
    """Text for second moments; by default corpus.txt beside the model's folder, else the model's own."""
    count: int = 1000
    """Facts a run edits."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws the facts, their order and the contexts anew."""
    every: int = 200
    """Facts between measurements."""

    def beside(self, given: str | None, name: str) -> str | None:
        """A file given, or the one of that name beside the model."""
        file = Path(self.model).parent / name
        return given or (str(file) if file.exists() else None)


def finished(study: Study, arm: Arm, seed: int) -> Path:
    """The folder of a run, made or gone on with where it is not finished."""
    out = study.out / "runs" / name_of(study, arm, seed)
    if out.exists():
        resume(out)
        return out
    console.print(f"{Path(study.model).name}, {arm.label}, seed {seed}", highlight=False)
    updates = -(-study.count // (arm.batch or study.count))
    text = METHODS[arm.editor].request == "text"
    net = str(network(study, arm, seed)) if METHODS[arm.editor].needs_net else None
    run(
        RunConfig(
            out=str(out),
            model=study.model,
            facts=str(facts_of(study, seed)),
            count=updates if text else study.count,
            known=False,
            editor=arm.editor,
            settings=Settings() if net else arm.settings,  # a network brings its own
            transforms=arm.transforms,
            network=net,
            text=TextStream(str(lines_of(study, seed)), BLOCK) if text else TextStream(),
            batch_size=arm.batch,
            chunk=max(1, min(updates, study.every // max(arm.batch, 1))),
            moments=MomentSource(text=study.beside(study.corpus, "corpus.txt")),
            limits=Limits(policy="skip"),
            seed=seed,
        )
    )
    return out


def name_of(study: Study, arm: Arm, seed: int) -> str:
    """The folder of a run."""
    return f"{Path(study.model).name}-{identity(study, arm)}-{seed}"


def identity(study: Study, arm: Arm) -> str:
    """A name for all that a run and what is asked of it depend on, beside the seed."""
    given = ("model", "facts", "controls", "text", "tasks", "generations", "generated", "corpus", "count")
    content = dataclasses.asdict(arm) | {name: getattr(study, name) for name in given}
    plain = arm.label.replace(" + ", "-").translate(str.maketrans(":[]", "=()", " "))
    return f"{plain}-{digest(content)}"


def digest(content: Json) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def network(study: Study, arm: Arm, seed: int) -> Path:
    """The network of a hypernetwork editor, trained where it is not, on the facts that this seed does not edit."""
    out = study.out / "networks" / name_of(study, arm, seed)
    if (out / NETWORK).exists():
        return out / NETWORK
    of_run = facts_of(study, seed)
    edited = {fact.id for fact in load_facts(str(of_run))}
    others = [fact for fact in every_fact(study) if fact.id not in edited]
    held_out = len(others) // 6
    if not held_out:
        raise SystemExit(
            f"{arm.editor} learns from facts that are not edited, of which there are {len(others)}: lower --count"
        )
    file = of_run.with_suffix(".others.jsonl")
    dump_jsonl(others, file)
    console.print(f"{Path(study.model).name}, training {arm.label}, seed {seed}", highlight=False)
    config = TrainRun(
        out=str(out),
        editor=arm.editor,
        settings=arm.settings,
        model=study.model,
        facts=str(file),
        count=len(others) - held_out,
        held_out=held_out,
        training=TrainConfig(edits=max(arm.batch, 1)),
        seed=seed,
    )
    return train(config).file


def facts_of(study: Study, seed: int) -> Path:
    """A file of `count` facts that the model knows, drawn and ordered by the seed."""
    of = digest({"model": study.model, "facts": study.facts})
    file = study.out / "facts" / f"{Path(study.model).name}-{of}-{study.count}-{seed}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        chosen = known_facts(shuffled(every_fact(study), seed), study.count, load(study.model))
        if len(chosen) < study.count:
            raise SystemExit(f"{study.model} knows {len(chosen)} of the facts: lower --count")
        dump_jsonl(chosen, file)
    return file


def every_fact(study: Study) -> list[Fact]:
    """Those that runs draw from."""
    return load_facts(study.beside(study.facts, "facts.jsonl") or "world")


def lines_of(study: Study, seed: int) -> Path:
    """A file of the corpus's lines in an order drawn by the seed: what continual pre-training reads."""
    corpus = study.beside(study.corpus, "corpus.txt")
    if corpus is None:
        raise SystemExit("continual pre-training reads a text: give one by --corpus")
    file = study.out / "facts" / f"{Path(study.model).name}-{digest({'corpus': corpus})}-{seed}.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_text(corpus).splitlines() if line.strip()]
        replace(file, "\n".join(shuffled(lines, seed)).encode())
    return file


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The same in an order drawn by the seed."""
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def measured(study: Study, arm: Arm, seed: int) -> Json:
    """What the run does to weights and ability, every `every` facts."""
    return kept(study, arm, seed, f"{study.every}.json", lambda path: _measure(study, path, seed))


def kept(study: Study, arm: Arm, seed: int, name: str, measure: Callable[[Path], Any]) -> Any:
    """What was measured of a run, from the file of this name; where there is none, the run is made and measured."""
    file = (study.results or study.out / "runs") / f"{name_of(study, arm, seed)}.{name}.gz"
    if not file.exists():
        content = measure(finished(study, arm, seed))
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, gzip.compress(json.dumps(content).encode(), mtime=0))
    return json.loads(gzip.decompress(file.read_bytes()))


def _measure(study: Study, path: Path, seed: int) -> Json:
    record = read_run(path)
    found, config, prepared = trajectory(path)
    first = found.at(0)
    size, steps = config.batch_size or study.count, steps_of(study, found, config)
    asker = Asker(
        questions(study, seed), study.beside(study.controls, "controls.jsonl"), prepared, found.folder, first
    )
    rows: dict[str, list[Json]] = {name: [] for name in ("edited", *NULLS)}

    def row(step: int, matrices: Matrices) -> Json:
        return asker.ask(step, matrices) | {"norm": norms(matrices, record.matrices)}

    for step, now in walk_used(prepared, found, steps):
        edited = row(step, now)
        for name, matrices in models_at(first, now, seed, step).items():
            rows[name].append(edited if matrices is now else row(step, matrices))
        if step == found.steps:
            retention = asker.retention(step, now)
    facts = [min(step * size, study.count) for step in steps]
    edits, norm = [0, *map(int, record.edits)], {p: digits(record.trajectory(p)[1]) for p in record.matrices}
    if prepared.editor.finalize is not as_they_are:  # the model as it is used is known where it was measured
        edits, norm = facts, columns([row["norm"] for row in rows["edited"]])
    return {
        "facts": facts,
        "edits": edits,
        "norm": norm,
        "alignment_share": {p: record.alignment_share(p) for p in record.matrices},
        "yardstick": {p: n for p, n in record.unedited_norm.items() if p not in norm},
        "right_after": record.right_after(),
        "final": record.final,
        "unedited": record.unedited,
        "retention": retention,
        "refused": record.refused,
        **{name: columns(table) for name, table in rows.items()},
    }


def questions(study: Study, seed: int) -> AbilityConfig:
    """What a run's models are asked at every measurement."""
    text = study.beside(study.text, "held-out.txt")
    return AbilityConfig(
        tasks=study.tasks,
        text=None if text is None else Path(text),
        text_tokens=64 * BLOCK,
        block=BLOCK,
        retention=False,
        generations=study.generations,
        generated=study.generated,
        seed=seed,
        batch=32,
    )


def norms(matrices: Matrices, paths: Iterable[str]) -> dict[str, float]:
    """||W||_F of these matrices."""
    found = {path: float(frobenius(matrices[path])) for path in paths}
    return dict(zip(found, digits(found.values()), strict=True))


def digits(values: Iterable[float]) -> list[float]:
    """As many as the float32 of a norm has, and two more."""
    return [float(f"{value:.9g}") for value in values]


def columns(rows: Sequence[Json]) -> Json:
    """A list of tables as a table of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def steps_of(study: Study, found: Trajectory, config: RunConfig) -> list[int]:
    """The updates after which a run is measured."""
    every = study.every // (config.batch_size or study.count) or 1
    return sorted({*range(0, found.steps, every), found.steps})


def models_at(first: Matrices, now: Matrices, seed: int, step: int) -> dict[str, Matrices]:
    """The edited matrices at this step and their null models, which before any update are the same."""
    nulls = {
        name: random_matrices(first, now, match, seed, step) if step else now for name, match in NULLS.items()
    }
    return {"edited": now, **nulls}


def random_matrices(first: Mapping[str, Any], now: Matrices, match: Match, seed: int, step: int) -> Matrices:
    """A null model of the matrices at this step."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    changed = {}
    for i, path in enumerate(sorted(now)):
        change = random_update(jax.random.fold_in(key, i), now[path] - first[path], match)
        changed[path] = added(first[path], change)
    return changed


def every_seed(study: Study, arms: Sequence[Arm]) -> list[list[Json]]:
    """`measured` of all arms by seed; seed after seed, so that a study that was stopped has whole ones."""
    found: list[list[Json]] = [[] for _ in arms]
    unedited: dict[str, float] = {}
    for seed in study.seeds:
        for arm, tables in zip(arms, found, strict=True):
            tables.append(measured(study, arm, seed))
            unedited |= of_one_model(study, unedited, tables[-1])
    return found


def of_one_model(study: Study, known: Mapping[str, float], table: Json) -> dict[str, float]:
    """Norms of the run's unedited matrices; SystemExit where they differ from those known of other runs' model.

    A model that is trained again may be another one, and a run's name does not tell.
    """
    unedited = table["yardstick"] | {path: norms[0] for path, norms in table["norm"].items()}
    for path, norm in unedited.items():
        if not np.isclose(norm, known.get(path, norm), rtol=1e-5):
            raise SystemExit(
                f"{study.results or study.out / 'runs'} has runs of two models called {study.model}: ||{path}|| "
                f"is {known[path]:.6g} in one and {norm:.6g} in another. Keep what is measured of each in a "
                f"folder of its own (--results, --out)."
            )
    return unedited


def begin(study: Study) -> None:
    """Before an experiment: compiled programs are kept, and figures have the style of reports."""
    mpl.rcParams.update(STYLE | {"savefig.dpi": 120})
    study.out.mkdir(parents=True, exist_ok=True)
    set_up_compiling()
