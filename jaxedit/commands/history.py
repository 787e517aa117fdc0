"""Commands on the steps of runs: history, at, diff, undo, apply, branch, verify."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
from rich.console import Console
from tyro.conf import Positional, arg

from jaxedit.commands.common import Computing, say
from jaxedit.errors import RunError
from jaxedit.export import refuse_existing_model, write_model
from jaxedit.linalg import dense, frobenius
from jaxedit.models.sources import load
from jaxedit.pipeline import branch, config_from, model_at, trajectory
from jaxedit.pipeline.prepare import with_matrices
from jaxedit.pipeline.sequence import Stop
from jaxedit.report.progress import Report
from jaxedit.report.steps import change_table, history_table
from jaxedit.trajectory.deltas import Delta, apply_delta, prints, read_delta, require_before, write_delta
from jaxedit.trajectory.replay import Trajectory
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import LowRank

Run = Positional[Path]


@dataclass(frozen=True, kw_only=True)
class History(Computing):
    """List the updates of a run: facts, norms, what was refused, where snapshots are."""

    run: Run
    """The run folder."""
    every: int = 1
    """List only every so manieth update, and the last."""


@dataclass(frozen=True, kw_only=True)
class At(Computing):
    """The model after a step of a run: norms of its edited matrices, or all of it as a Hugging Face folder."""

    run: Run
    """The run folder."""
    step: Positional[int]
    """How many updates to have: 0 is the model before the first."""
    out: Path | None = None
    """Folder to write; it must not exist."""


@dataclass(frozen=True, kw_only=True)
class Diff(Computing):
    """What changed between two steps of a run, and as a small file for `jaxedit apply`."""

    run: Run
    """The run folder."""
    start: Positional[int]
    """The earlier step."""
    stop: Positional[int]
    """The later one."""
    out: Path | None = None
    """File (safetensors) to write; it must not exist."""


@dataclass(frozen=True, kw_only=True)
class Apply(Computing):
    """Add a change that `jaxedit diff` wrote to a model, and write the result as a Hugging Face folder."""

    change: Positional[Path]
    """The file."""
    model: Positional[str]
    """Folder, hub id, or built-in name of the model."""
    out: Positional[Path]
    """Folder to write; it must not exist."""


@dataclass(frozen=True, kw_only=True)
class Undo(Computing):
    """The last model of a run with some updates left out, as a Hugging Face folder.

    All other updates stay as they were, though later ones were computed on a model that held those left out.
    """

    run: Run
    """The run folder."""
    updates: Positional[tuple[int, ...]]
    """Numbers of the updates, from 0 on."""
    out: Path
    """Folder to write; it must not exist."""


@dataclass(frozen=True)
class Changes:
    """Settings of a branch that differ from those of its run; what is not given stays."""

    editor: str | None = None
    """Name of the editor; its memory then starts empty."""
    facts: str | None = None
    """Other facts than those that the run had left."""
    skip_invalid: bool | None = None
    """Leave out those that cannot be used, instead of stopping."""
    count: int | None = None
    """How many of them."""
    known: bool | None = None
    """Take only facts that the model of that step knows."""
    batch_size: int | None = None
    """Facts written by one update."""
    chunk: int | None = None
    """Updates between saves."""
    seed: int | None = None
    """Of everything random."""
    network: str | None = None
    """Trained network of another hypernetwork editor."""
    text: str | None = None
    """Another text for an editor that learns from text, read from its start."""


@dataclass(frozen=True, kw_only=True)
class Branch(Computing):
    """Start a new run from the model after a step of another one."""

    run: Run
    """The run folder."""
    step: Positional[int]
    """How many of its updates to have."""
    out: Positional[Path]
    """Folder of the new run; it must not exist."""
    changes: Annotated[Changes, arg(name="")] = Changes()


@dataclass(frozen=True, kw_only=True)
class Verify(Computing):
    """Check every file of a run against its checksums; exit code 2 and a list where something is wrong."""

    run: Run
    """The run folder."""
    replay: bool = False
    """Add up all updates too, dense ones computed once more, and compare with the matrices that the run had."""


HistoryCommand = History | At | Diff | Apply | Undo | Verify


def execute_history(command: HistoryCommand, out: Console) -> None:
    """Does what a command asks."""
    match command:
        case History(run=run, every=every):
            out.print(history_table(RunFolder.open(run), every))
        case At(run=run, step=step, out=folder):
            _at(run, step, folder, out)
        case Diff(run=run, start=start, stop=stop, out=file):
            _diff(run, start, stop, file, out)
        case Apply(change=file, model=model, out=folder):
            _apply(file, model, folder, out)
        case Undo(run=run, updates=updates, out=folder):
            refuse_existing_model(folder)
            say(out, f"The model is in {write_model(model_at(run, without=updates), folder)}")
        case Verify(run=run, replay=replay):
            _verify(run, replay, out)


def run_branch(command: Branch, report: Report, stop: Stop) -> RunFolder:
    """Runs a branch to its end."""
    changes = {name: value for name, value in asdict(command.changes).items() if value is not None}
    if "text" in changes:
        had = config_from(RunFolder.open(command.run).read("config")).text
        changes["text"] = replace(had, file=changes["text"], skip=0)
    return branch(command.run, command.step, command.out, changes, report, stop)


def _at(run: Path, step: int, folder: Path | None, out: Console) -> None:
    if folder is not None:
        refuse_existing_model(folder)
    found, _, prepared = trajectory(run)
    first, matrices = found.at(0), found.at(step)
    changes = {path: matrices[path] - first[path] for path in matrices}
    out.print(change_table(f"{run}, step {step}", _norms(matrices), _norms(first), _norms(changes)))
    if folder is not None:
        write_model(with_matrices(prepared.checkpoint, matrices), folder)
        say(out, f"The model is in {folder}")


def _diff(run: Path, start: int, stop: int, file: Path | None, out: Console) -> None:
    found, _, prepared = trajectory(run)
    change = found.change(start, stop)
    after, before = found.at(stop), found.at(start)
    sizes = {path: float(frobenius(dense(delta))) for path, delta in change.items()}
    out.print(change_table(f"{run}, steps {start} to {stop}", _norms(after), _norms(before), sizes))
    if file is not None:
        origin = found.folder.origin(prepared.checkpoint.params)
        edited = prints(origin | before) if start or origin else {}
        write_delta(file, Delta("" if edited else prepared.checkpoint.fingerprint, change, edited))
        rank = max(
            d.left.shape[1] if isinstance(d, LowRank) else min(d.shape) if d.ndim == 2 else 1
            for d in change.values()
        )
        say(out, f"The change, of rank {rank} at most, is in {file}: {file.stat().st_size:,} bytes")
        if edited:
            say(out, f"It belongs on the model after {start} updates, not on the base weights:")
            say(out, f"  jaxedit at {run} {start} --out MODEL && jaxedit apply {file} MODEL OUT")


def _apply(file: Path, name: str, folder: Path, out: Console) -> None:
    refuse_existing_model(folder)
    delta = read_delta(file)
    model = load(name, dtype=jnp.float32)
    require_before(model.params, delta, file)
    if not delta.before and model.fingerprint != delta.weights:
        raise RunError(
            f"{file} belongs to other base weights: {delta.weights[:12]}, the model {name!r} has "
            f"{model.fingerprint[:12]}"
        )
    write_model(with_matrices(model, apply_delta(model.params, delta)), folder)
    say(out, f"The model is in {folder}")


def _verify(run: Path, replay: bool, out: Console) -> None:
    folder = RunFolder.open(run)
    problems = folder.damages()
    if replay and not problems:
        found: Trajectory = trajectory(run)[0]
        problems = found.differences()
    if problems:
        raise RunError(f"{run} is damaged:\n" + "\n".join(f"- {problem}" for problem in problems))
    state = "finished" if folder.finished else "not finished"
    say(out, f"{run} is whole: {folder.updates} updates in {len(folder.journal.chunks)} chunks, {state}")


def _norms(matrices: dict) -> dict[str, float]:
    return {path: float(frobenius(matrix)) for path, matrix in matrices.items()}
