"""From settings to a finished run, and on from wherever one stopped. The only place where all rooms meet."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.data.facts import Fact
from jaxedit.data.records import jsonl
from jaxedit.data.sources import load_facts
from jaxedit.editors import method
from jaxedit.errors import RunError
from jaxedit.memory import Cut
from jaxedit.models.packing import Size
from jaxedit.parallel import replicated
from jaxedit.pipeline.config import DeviceConfig, RunConfig, check, check_devices, config_from
from jaxedit.pipeline.driver import apply_function, guard_for
from jaxedit.pipeline.follow import Follower, writer_of
from jaxedit.pipeline.inputs import inputs_of, require_same_files, require_same_model
from jaxedit.pipeline.lines import metric_lines, summary
from jaxedit.pipeline.placing import placed, placed_chunk
from jaxedit.pipeline.plan import Plan, plan_of
from jaxedit.pipeline.prepare import (
    Prepared,
    Report,
    choose_facts,
    draw_contexts,
    environment,
    load_model,
    prepare,
    quiet,
)
from jaxedit.pipeline.used import used
from jaxedit.pipeline.warm import first_state
from jaxedit.pipeline.watch import Watcher, require_room
from jaxedit.processes import any_process, by_first, join_processes, several, to_host
from jaxedit.trajectory.guard import REASONS, Policy
from jaxedit.trajectory.replay import Trajectory
from jaxedit.trajectory.run import Step
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import Done, RunWriter, create, refuse_existing
from jaxedit.types import Params, State

Stop = Callable[[], bool]
"""Asked after every chunk whether to end the run there, to be resumed."""


def never() -> bool:
    """A stop that does not come."""
    return False


def run(config: RunConfig, report: Report = quiet, stop: Stop = never) -> RunFolder:
    """Edits `config.count` facts in sequence and writes the run folder; returns it when all is done."""
    check(config)
    join(config.devices)
    by_first(lambda: refuse_existing(Path(config.out)))
    require_room(config)
    checkpoint = load_model(config)
    facts = choose_facts(config, checkpoint, report)
    contexts = draw_contexts(config, checkpoint)
    prepared = prepare(config, checkpoint, facts, contexts, report)
    plan = plan_of(config, prepared)  # what cannot be planned leaves no folder
    folder = new_folder(config, prepared, first_state(config, prepared, report))
    return finish(config, folder, prepared, plan, report, stop)


def join(devices: DeviceConfig) -> None:
    """Waits for the other processes of a run that has several."""
    if devices.distributed:
        join_processes()


def devices_of(folder: RunFolder) -> DeviceConfig:
    """The devices that a run asked for."""
    return config_from(folder.read("config")).devices


def new_folder(
    config: RunConfig,
    prepared: Prepared,
    state: State,
    origin: dict[str, Array] | None = None,
    branch: dict[str, Any] | None = None,
) -> RunFolder:
    """The folder of a run that is about to begin; `origin` and `branch` are those of `history.branch`."""
    documents = {
        "config": dataclasses.asdict(config),
        "environment": environment(config, prepared) | {"inputs": inputs_of(config, prepared.checkpoint)},
    }
    if branch is not None:
        documents["environment"]["branch"] = branch
    remembered = state if prepared.editor.remembers else None
    arrays = to_host((prepared.params.edited, remembered, origin))
    by_first(lambda: create(config.out, documents, jsonl(prepared.facts), *arrays))
    return RunFolder.open(config.out)


def resume(
    path: str | Path,
    report: Report = quiet,
    stop: Stop = never,
    policy: Policy | None = None,
    devices: DeviceConfig | None = None,
) -> RunFolder:
    """Goes on with a stopped run from its last finished chunk, to the same end as if it had not stopped.

    `policy` changes what becomes of refused updates from here on, `devices` where the work is done: on others than
    before the end is the same to rounding.
    """
    folder = RunFolder.open(path)
    if folder.finished:
        return folder
    had = devices_of(folder)
    devices = devices or had
    check_devices(devices)
    join(devices)
    config, prepared = reopen(folder, report, None if devices == had else devices)
    require_same_files(folder, config, watched=True)
    return finish(config, folder, prepared, plan_of(config, prepared), report, stop, policy)


def reopen(
    folder: RunFolder, report: Report = quiet, devices: DeviceConfig | None = None
) -> tuple[RunConfig, Prepared]:
    """A run's settings and ingredients as they were, on its own kind of devices or on those given.

    Raises RunError where the base model is another, ConfigError where the devices cannot be had.
    """
    config = config_from(folder.read("config") | {"out": str(folder.path)})
    config = dataclasses.replace(config, devices=devices or config.devices)
    checkpoint = load_model(config)
    folder.require_base(f"{config.model} in {checkpoint.folder}", checkpoint.fingerprint)
    require_same_model(folder, checkpoint)
    origin = folder.origin(checkpoint.params)
    facts = facts_of(folder)
    if not facts and method(config.editor).request == "facts":
        raise RunError(f"{folder.path} has no facts to edit: its facts.jsonl is empty")
    cut = recorded_cut(folder) if devices is None else None
    contexts = tuple(folder.read("environment")["contexts"])
    return config, prepare(config, checkpoint, facts, contexts, report, origin, cut)


def recorded_cut(folder: RunFolder) -> Cut | None:
    """How a run's batches were cut; None for one that does not say."""
    known = folder.read("environment").get("cut")
    if known is None:
        return None
    cut = Cut(**known)
    return cut._replace(sizes=tuple(Size(*size) for size in cut.sizes))


def facts_of(folder: RunFolder) -> list[Fact]:
    """The facts of a run; none where it learns from text, on a model that knew none of them."""
    file = folder.facts_file()
    return load_facts(str(file)) if file.stat().st_size else []


def finish(
    config: RunConfig,
    folder: RunFolder,
    prepared: Prepared,
    plan: Plan,
    report: Report,
    stop: Stop = never,
    policy: Policy | None = None,
) -> RunFolder:
    """Applies all updates that are not yet in the folder, then scores everything on the final model.

    Returns a run at once that another process ended while this one was on its way to it.
    """
    with writer_of(folder) as writer:
        folder = RunFolder.open(folder.path)
        if folder.finished:
            return folder
        if policy is not None:
            by_first(lambda: writer.change_policy(policy))
            folder = RunFolder.open(folder.path)
        watcher = Watcher(config, prepared, folder, plan, report)
        watcher.catch_up()
        job = _Job(config, prepared, folder, plan, writer, watcher)
        edited, state, stopped = _apply_all(job, continued(folder, prepared), report, stop)
        if not stopped:
            watcher.end()
            final = prepared.editor.finalize(Params(edited, prepared.params.frozen), state)
            writer.end(summary(prepared, final, report))
    return RunFolder.open(folder.path)


def continued(folder: RunFolder, prepared: Prepared) -> tuple[dict[str, Array], State]:
    """Copies of the matrices and the state from which a run goes on; chunks take over the buffers they get."""
    state = prepared.editor.init(prepared.params)
    last = len(folder.journal.chunks)
    if folder.low_rank:
        edited = Trajectory(folder, prepared.params.edited, state).at(folder.updates)
    else:
        edited = folder.restore(last, "edited", prepared.params.edited)
    return jax.tree.map(jnp.copy, (edited, folder.state(state)))


class _Job(NamedTuple):
    """A run that is opened for going on."""

    config: RunConfig
    prepared: Prepared
    folder: RunFolder  # as it was opened
    plan: Plan
    writer: RunWriter | Follower
    watcher: Watcher


def _apply_all(
    job: _Job, start: tuple[dict[str, Array], State], report: Report, stop: Stop
) -> tuple[dict[str, Array], State, bool]:
    """Edited matrices and state after the last update, and whether the run was stopped before."""
    config, prepared, folder, plan, writer, watcher = job
    guard = guard_for(config, prepared, folder.journal.policy)
    apply = apply_function(config, prepared, guard, plan)
    edited, state = start
    begun = folder.updates
    report("editing", begun, plan.updates)
    remembers = prepared.editor.remembers
    chunks = plan.chunks(begun)
    upcoming = next(chunks, None)
    while (planned := upcoming) is not None:
        if any_process(stop()):
            return edited, state, True
        chunk = placed_chunk(planned.chunk, prepared.devices)
        edited, state = placed(edited, state, prepared.devices)
        edited, state, steps = apply(edited, prepared.frozen, state, chunk)
        steps = replicated(steps, prepared.devices)
        upcoming = next(chunks, None)  # encoded while the device works
        writer.wait()  # for the copies of the chunk before, so that there is one set of them
        kept = jax.tree.map(jnp.copy, (edited, state if remembers else None))
        kept = to_host(kept) if several() else kept
        refused = np.asarray(steps.refused)
        halted = guard.policy == "stop" and refused.any()
        count = int(np.flatnonzero(refused)[0]) if halted else len(planned.batches)
        if count:
            lines = metric_lines(steps, planned.first, planned.batches[:count])
            writer.append(Done(count, planned.shape, steps, lines, *kept))
        del kept  # the writer has them, until they are on the disk
        if halted:
            writer.wait()
            raise RunError(_refusal(folder.path, planned.first + count, steps, count, planned.batches[count]))
        done = planned.first + count
        if done in watcher.steps:
            writer.wait()
            watcher.look(done, used(prepared, edited, state))
        report("editing", done, plan.updates)
    return edited, state, False


def _refusal(path: Path, update: int, steps: Step, offset: int, facts: list) -> str:
    code = int(np.asarray(steps.refused)[offset])
    why = " and ".join(text for i, text in enumerate(REASONS) if code >> i & 1)
    sizes = {name: float(np.asarray(x)[offset]) for name, x in steps.delta_norm.items()}
    of = f" (fact {', '.join(repr(fact.id) for fact in facts[:3])})" if facts else ""
    return (
        f"update {update} of {path}{of} is {why}: "
        f"||Delta|| = {sizes}. It was not applied; all {update} updates before it are saved. Go on without "
        f"such updates with `jaxedit resume {path} --policy skip`, or look at the fact and the settings."
    )
