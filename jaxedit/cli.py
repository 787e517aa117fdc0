"""The `jaxedit` command line, derived from frozen dataclasses."""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install PyTorch

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from jaxedit import pipeline
from jaxedit.commands.ability import AskRun, execute_ability
from jaxedit.commands.common import TERMINATED, Common, Computing, say
from jaxedit.commands.history import (
    Apply,
    At,
    Branch,
    Diff,
    History,
    HistoryCommand,
    Undo,
    Verify,
    execute_history,
    run_branch,
)
from jaxedit.commands.measure import Measure, execute_measure
from jaxedit.commands.sweep import Sweep, execute_sweep
from jaxedit.commands.trace import TraceRun, execute_trace
from jaxedit.commands.train import Train, execute_train
from jaxedit.compiling import set_up_compiling
from jaxedit.configs import build, read_toml
from jaxedit.data import dump_jsonl, load_facts
from jaxedit.data.sources import EMBEDDED, stated
from jaxedit.errors import ConfigError, FactError, JaxeditError
from jaxedit.export import export
from jaxedit.parallel import Way
from jaxedit.pipeline import DeviceConfig, RunConfig
from jaxedit.pipeline.inputs import other_versions
from jaxedit.pipeline.stopping import asked_to_stop
from jaxedit.processes import is_first
from jaxedit.report.events import write_events
from jaxedit.report.figures import Format, write_figures
from jaxedit.report.page import measure_folders, read_source, write_page
from jaxedit.report.progress import reporting
from jaxedit.report.tables import editor_table, fact_table, run_table, transform_table
from jaxedit.trajectory.files import write_sums
from jaxedit.trajectory.guard import Policy
from jaxedit.trajectory.store import RunFolder

BAD_INPUT, STOPPED = 2, 130
COMPARISON, PAGE, EVENTS = "comparison", "report.html", "tensorboard"


@dataclass(frozen=True, kw_only=True)
class Run(Computing):
    """Edit facts one after the other and write a run folder."""

    file: Annotated[Positional[Path | None], arg(metavar="CONFIG.toml")] = None
    """TOML file of the options below, each under its own name; options given here come before it."""
    config: Annotated[RunConfig, arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class Resume(Computing):
    """Go on with a stopped run from its last finished chunk."""

    run: Positional[Path]
    """The run folder."""
    policy: Policy | None = None
    """What becomes of refused updates from here on; by default what it was."""
    way: Way | None = None
    """How to spread the work from here on (see `jaxedit run --devices.way`); by default as it was."""
    tensor: int = 1
    """With a new way "mesh": devices that share the matrices of one copy of the model."""
    distributed: bool = False
    """With a new way "mesh": this is one of several processes (see `jaxedit run --devices.distributed`)."""


@dataclass(frozen=True, kw_only=True)
class Trace(Computing):
    """Find the layers and tokens that recall facts, by causal tracing, and choose layers to edit."""

    config: Annotated[TraceRun, arg(name="")] = field(default_factory=TraceRun)


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Write the figures of runs again, and report.html, one page that needs no network; print their table."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """Folder for the page and for the figures that compare several runs; by default `comparison` beside the first
    of them, and the figures' own folder for the page of a single run."""
    measures: tuple[Path, ...] = ()
    """Folders that `jaxedit measure` wrote of these runs; RUN-measures is found without."""
    formats: tuple[Format, ...] = ("png", "svg")
    """What figures are written as, for publications."""
    page: bool = True
    """Write report.html: interactive figures, heat maps, what was measured, and all their numbers."""
    tensorboard: bool = False
    """Write TensorBoard's event files, into `tensorboard` beside the page (`pip install jaxedit[tensorboard]`)."""


@dataclass(frozen=True, kw_only=True)
class Export(Computing):
    """Write the edited model of a run as a Hugging Face folder."""

    run: Positional[Path]
    """The run folder."""
    out: Positional[Path]
    """Folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the stored weights; in 16 bits small edits may be rounded away."""
    step: int | None = None
    """After how many updates; by default after the last."""


@dataclass(frozen=True, kw_only=True)
class Editors(Common):
    """List the editors, and the transforms of their updates."""


@dataclass(frozen=True, kw_only=True)
class Facts(Common):
    """Count the facts of a set by relation, with an example of each."""

    source: Positional[str] = "world"
    """"world", or a file of facts (CounterFact, zsRE, KnowEdit, JSONL)."""
    skip_invalid: bool = False
    """Leave out facts that cannot be used, instead of stopping."""
    out: Path | None = None
    """Write them to this file too, one JSON object a line."""
    limit: int | None = None
    """Take only so many, from the first on."""
    seed: int = 0
    """Of the embedded set's wordings and targets."""


Command = (
    Run
    | Resume
    | Sweep
    | Branch
    | Train
    | Trace
    | Measure
    | AskRun
    | Report
    | Export
    | HistoryCommand
    | Editors
    | Facts
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with 2 on bad input, 130 when stopped by the user, 143 after SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out, err = Console(), Console(stderr=True)
    debug = "--debug" in arguments
    try:
        command = parse(arguments)
        if isinstance(command, Computing):
            set_up_compiling(command.compile_cache)
        execute(command, out, err)
    except JaxeditError as error:
        if debug:
            raise
        say(err, f"error: {error}", style="red")
        raise SystemExit(BAD_INPUT) from None
    except OSError as error:  # of a file that no part of the library expects to fail
        if debug:
            raise
        say(err, f"error: {error} (--debug shows where)", style="red")
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        say(err, "stopped; `jaxedit resume RUN` goes on from the last finished chunk")
        raise SystemExit(STOPPED) from None


def parse(arguments: Sequence[str]) -> Command:
    """The command of the arguments; a run's TOML file gives the defaults of its options."""
    command = _parse(arguments, Run(), Sweep())
    if isinstance(command, Run | Sweep) and command.file is not None:
        given = build(RunConfig, read_toml(command.file), str(command.file))
        return _parse(arguments, Run(config=given), Sweep(config=given))
    return command


def _parse(arguments: Sequence[str], run: Run, sweep: Sweep) -> Command:
    commands: Any = (
        Annotated[Run, subcommand("run", default=run)]
        | Annotated[Resume, subcommand("resume")]
        | Annotated[Sweep, subcommand("sweep", default=sweep)]
        | Annotated[Branch, subcommand("branch")]
        | Annotated[Train, subcommand("train")]
        | Annotated[Trace, subcommand("trace")]
        | Annotated[Measure, subcommand("measure")]
        | Annotated[AskRun, subcommand("ability")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Export, subcommand("export")]
        | Annotated[History, subcommand("history")]
        | Annotated[At, subcommand("at")]
        | Annotated[Diff, subcommand("diff")]
        | Annotated[Apply, subcommand("apply")]
        | Annotated[Undo, subcommand("undo")]
        | Annotated[Verify, subcommand("verify")]
        | Annotated[Editors, subcommand("editors")]
        | Annotated[Facts, subcommand("facts")]
    )
    about = "Edits the knowledge of language models, and measures what that does to them."
    return tyro.cli(commands, args=arguments, prog="jaxedit", description=about)


def execute(command: Command, out: Console, err: Console) -> None:
    """Does what a command asks; results go to `out`, progress to `err`."""
    match command:
        case Run(config=config):
            _edit(lambda report, stop: pipeline.run(config, report, stop), out, err)
        case Resume(run=run, policy=policy):
            devices = _devices(command)
            if others := other_versions(RunFolder.open(run)):
                known = ", ".join(f"{name} {then}, here {now}" for name, (then, now) in others.items())
                say(err, f"The run was begun with {known}: numbers may differ from here on, by rounding.")
            _edit(lambda report, stop: pipeline.resume(run, report, stop, policy, devices), out, err)
        case Sweep():
            execute_sweep(command, out, err)
        case Branch():
            _edit(lambda report, stop: run_branch(command, report, stop), out, err)
        case Train(config=config):
            execute_train(config, out, err)
        case Trace(config=config):
            execute_trace(config, out, err)
        case Measure():
            execute_measure(command, out, err)
        case Report():
            _report(command, out)
        case AskRun():
            execute_ability(command, out, err)
        case Export(run=run, out=folder, dtype=dtype, step=step):
            say(out, f"The edited model is in {export(run, folder, jnp.dtype(dtype), step)}")
        case Editors():
            out.print(editor_table())
            out.print(transform_table())
        case Facts():
            _facts(command, out)
        case _:
            execute_history(command, out)


def _edit(edit: Any, out: Console, err: Console) -> None:
    start = time.monotonic()
    with asked_to_stop() as stop, reporting(err, "loading the model") as report:
        folder: RunFolder = edit(report, stop)
    if not folder.finished:
        say(err, f"stopped; `jaxedit resume {folder.path}` goes on after {folder.updates} updates")
        raise SystemExit(TERMINATED)
    if not is_first():
        return
    seconds = time.monotonic() - start
    _report(Report(runs=(folder.path,)), out)
    cut = folder.read("environment").get("cut", {})
    if cut.get("pieces", 1) > 1 or cut.get("remat"):
        again = ", layers computed again for gradients" if cut["remat"] else ""
        say(out, f"Pieces of a batch on a device: {cut['pieces']}{again}.")
    say(out, f"The run is in {folder.path}; it took {seconds:.0f} s.")


def _devices(command: Resume) -> DeviceConfig | None:
    """What a run is to go on with; None for what it had."""
    if command.way is None:
        if command.tensor != 1 or command.distributed:
            raise ConfigError("--tensor and --distributed belong to a new --way: give --way mesh with them")
        return None
    had = pipeline.devices_of(RunFolder.open(command.run))
    return replace(had, way=command.way, tensor=command.tensor, distributed=command.distributed)


def _report(command: Report, out: Console) -> None:
    paths, comparison = command.runs, command.out
    if not paths:
        raise ConfigError("no run is named: give one or more run folders")
    measured = command.page or command.tensorboard
    measures = measure_folders(paths, command.measures) if measured else [None] * len(paths)
    sources = [read_source(*found) for found in zip(paths, measures, strict=True)]
    runs = [source.record for source in sources]
    if comparison is None and len(runs) > 1:
        comparison = paths[0].resolve().parent / COMPARISON
    folder = comparison or paths[0] / "figures"
    written, page = [], comparison or paths[0] / "figures"
    if command.page:
        written.append(write_page(sources, page / PAGE))
    if command.tensorboard:
        write_events(sources, page / EVENTS)
    for run, path in zip(runs, paths, strict=True):
        written += write_figures([run], path / "figures", command.formats)
        write_sums(path / "figures")
    if comparison is not None:
        written += write_figures(runs, comparison, command.formats)
    out.print(run_table(runs))
    for folder in dict.fromkeys(file.parent for file in written):
        names = ", ".join(file.name for file in written if file.parent == folder)
        say(out, f"Figures in {folder}: {names}")
    if command.tensorboard:
        say(out, f"For TensorBoard: tensorboard --logdir {page / EVENTS}")


def _facts(command: Facts, out: Console) -> None:
    facts = load_facts(
        command.source, seed=command.seed, limit=command.limit, skip_invalid=command.skip_invalid
    )
    if command.out is not None:
        if command.out.exists():
            raise FactError(f"{command.out} exists already: choose another file")
        dump_jsonl(facts, command.out)
    out.print(fact_table(facts))
    if command.skip_invalid and command.source not in EMBEDDED:
        count = stated(command.source)
        left_out = count - len(load_facts(command.source, skip_invalid=True))
        verb = "is" if left_out == 1 else "are"
        say(out, f"Of {count} facts in {command.source} {left_out} cannot be used and {verb} left out.")


if __name__ == "__main__":
    main()
