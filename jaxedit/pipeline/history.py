"""Steps of runs, for those who have the model at hand: replay, branches, edits taken out."""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxedit.editors import Settings
from jaxedit.errors import RunError
from jaxedit.models.sources import Checkpoint
from jaxedit.parallel import on_one_device, placed_parameters
from jaxedit.pipeline.config import DeviceConfig, RunConfig, check
from jaxedit.pipeline.placing import placed, placed_chunk
from jaxedit.pipeline.plan import plan_of
from jaxedit.pipeline.prepare import (
    Prepared,
    Report,
    choose_facts,
    draw_contexts,
    load_model,
    prepare,
    quiet,
    with_matrices,
)
from jaxedit.pipeline.sequence import (
    Stop,
    apply_function,
    devices_of,
    finish,
    guard_for,
    never,
    new_folder,
    reopen,
)
from jaxedit.pipeline.used import used
from jaxedit.pipeline.warm import first_state
from jaxedit.trajectory.files import fingerprint
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.replay import Rerun, Trajectory
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import refuse_existing
from jaxedit.types import State


def trajectory(path: str | Path, report: Report = quiet) -> tuple[Trajectory, RunConfig, Prepared]:
    """All steps of a run, dense updates and editors' memories included, with what the run is made of."""
    folder = RunFolder.open(path)
    config, prepared = reopen(folder, report, DeviceConfig())  # low-rank updates are added up on any device
    recorded = devices_of(folder)
    config = dataclasses.replace(config, devices=recorded)
    state = prepared.editor.init(prepared.params)
    program = functools.cache(
        lambda: rerun_of(config, folder, prepared if recorded == DeviceConfig() else _as_it_was(folder))
    )
    found = Trajectory(folder, prepared.params.edited, state, lambda *given: program()(*given))
    return found, config, prepared


def _as_it_was(folder: RunFolder) -> Prepared:
    """A run's ingredients on as many devices as it had. Raises RunError where there are more or fewer."""
    had, here = len(folder.read("environment")["devices"]), jax.device_count()
    if had != here:
        raise RunError(
            f"{folder.path} was made on {had} devices, and this step of it must be computed again: here are {here}. "
            f"Ask where there are {had}, or for a step with a snapshot (`jaxedit history` lists them)"
        )
    return reopen(folder)[1]


def rerun_of(config: RunConfig, folder: RunFolder, prepared: Prepared) -> Rerun:
    """Runs recorded chunks once more by the very program that the run used, stopping after any of their updates."""
    plan = plan_of(config, prepared)
    guard = guard_for(config, prepared, folder.journal.policy)
    apply = apply_function(config, prepared, guard, plan)

    def rerun(
        edited: dict[str, Array], state: State, chunk: Finished, count: int
    ) -> tuple[dict[str, Array], State]:
        planned = plan.planned(chunk.first, chunk.updates, chunk.shape)
        active = jnp.arange(plan.length) < count
        copies = jax.tree.map(jnp.copy, placed(edited, state, prepared.devices))
        again = placed_chunk(planned.chunk._replace(active=active), prepared.devices)
        edited, state, _ = apply(copies[0], prepared.frozen, copies[1], again)
        return on_one_device((edited, state), prepared.devices)

    return rerun


def branch(
    path: str | Path,
    step: int,
    out: str | Path,
    changes: dict[str, Any] | None = None,
    report: Report = quiet,
    stop: Stop = never,
) -> RunFolder:
    """A new run from the model after `step` updates of another.

    With the settings of the first run it goes on as that one did: with the facts that were left, the editor's
    memory carried over; to the bit where these facts need arrays of the same shapes, else to rounding.
    `changes` are settings of `RunConfig` by name; with another editor, other settings of it, or other facts,
    the memory starts empty.
    """
    refuse_existing(Path(out))
    parent, config, prepared = trajectory(path, report)
    changes = dict(changes or {})
    if changes.get("editor", config.editor) != config.editor:
        changes = {"settings": Settings()} | changes
    new = dataclasses.replace(config, **changes, out=str(out))
    check(new)
    same = (new.editor, new.settings, new.facts) == (config.editor, config.settings, config.facts)
    edited, state = parent.resumable(step) if same else (parent.at(step), None)
    base = load_model(new)
    matrices = placed_parameters(parent.folder.origin(base.params) | edited, base.model.placement)
    if same:
        done = sum(len(batch) for batch in plan_of(config, prepared).batches[:step])
        skip = config.text.skip + step
        new = dataclasses.replace(new, text=dataclasses.replace(config.text, skip=skip))
        facts, contexts = prepared.facts[done:][: changes.get("count")], prepared.contexts
        if not facts:
            raise RunError(
                f"{path} has no facts left after step {step}: name others with --facts, or an earlier step"
            )
        new = dataclasses.replace(new, count=len(facts))
    else:
        start = with_matrices(base, matrices)
        facts, contexts = choose_facts(new, start, report), draw_contexts(new, start)
    ready = prepare(new, base, facts, contexts, report, matrices)
    state = first_state(new, ready, report) if state is None else state
    origin = {"matrices": sorted(matrices), "fingerprint": fingerprint(matrices)}
    about = {"run": str(path), "step": step, **origin}
    return finish(new, new_folder(new, ready, state, matrices, about), ready, report, stop)


def model_at(path: str | Path, step: int | None = None, without: Collection[int] = ()) -> Checkpoint:
    """The whole model after a step, by default as the run left it, or after the last with updates left out.

    As the run left it means after `Editor.finalize`: for transforms that act once, at the end.
    """
    found, _, prepared = trajectory(path)
    if without and step is not None:
        raise RunError("updates are left out of the last step: give a step, or updates to leave out")
    if without or step is not None:
        return with_matrices(prepared.checkpoint, found.without(without) if step is None else found.at(step))
    matrices, state = found.resumable(found.steps)
    final = used(prepared, matrices, state)
    return with_matrices(prepared.checkpoint, final)
