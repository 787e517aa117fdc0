"""Steps of runs, for those who have the model at hand: replay, branches, edits taken out."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from jaxedit.data.facts import Fact
from jaxedit.digests import fingerprint
from jaxedit.editors import Settings, method
from jaxedit.errors import RunError
from jaxedit.models.sources import Checkpoint
from jaxedit.parallel import placed_parameters
from jaxedit.pipeline.config import DeviceConfig, RunConfig, check
from jaxedit.pipeline.driver import rerun_of, when_needed
from jaxedit.pipeline.inputs import require_same_files
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
    devices_of,
    finish,
    never,
    new_folder,
    recorded_cut,
    reopen,
)
from jaxedit.pipeline.used import used
from jaxedit.pipeline.warm import first_state
from jaxedit.pipeline.watch import require_room
from jaxedit.trajectory.replay import Rerun, Trajectory
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import refuse_existing

GOES_ON = ("editor", "settings", "network", "transforms", "facts", "text")
"""Settings that a branch has in common with its run where it goes on as that one did."""
CUT_BY = ("model", "dtype", "batch_size", "devices")
"""Those by which, further, its batches are cut as that one's were."""


def trajectory(path: str | Path, report: Report = quiet) -> tuple[Trajectory, RunConfig, Prepared]:
    """All steps of a run, dense updates and editors' memories included, with what the run is made of."""
    folder = RunFolder.open(path)
    here, recorded = DeviceConfig(), devices_of(folder)
    as_it_was = recorded == here  # its recorded cut included; low-rank updates are added up on any device
    config, prepared = reopen(folder, report, None if as_it_was else here)
    config = dataclasses.replace(config, devices=recorded)

    def rerun() -> Rerun:
        require_same_files(folder, config)
        ready = prepared if as_it_was else _as_it_was(folder)
        return rerun_of(config, folder, ready, plan_of(config, ready))

    state = prepared.editor.init(prepared.params)
    return Trajectory(folder, prepared.params.edited, state, when_needed(rerun)), config, prepared


def _as_it_was(folder: RunFolder) -> Prepared:
    """A run's ingredients on as many devices as it had. Raises RunError where there are more or fewer."""
    had, here = len(folder.read("environment")["devices"]), jax.device_count()
    if had != here:
        raise RunError(
            f"{folder.path} was made on {had} devices, and this step of it must be computed again: here are {here}. "
            f"Ask where there are {had}, or for a step with a snapshot (`jaxedit history` lists them)"
        )
    return reopen(folder)[1]


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
    `changes` are settings of `RunConfig` by name; with another of those in `GOES_ON` the memory starts empty. Another
    editor has its own preset, no network and no warm-up but those in `changes`. Another seed draws contexts and the
    text of second moments anew; the facts that were left keep their order.
    """
    refuse_existing(Path(out))
    parent, config, prepared = trajectory(path, report)
    changes = dict(changes or {})
    if changes.get("editor", config.editor) != config.editor:
        anew: dict[str, Any] = {"settings": Settings(), "warm_up": 0, "network": None}
        changes = anew | changes
    new = dataclasses.replace(config, **changes, out=str(out))
    check(new)
    require_room(new)
    same = all(getattr(new, name) == getattr(config, name) for name in GOES_ON)
    edited, state = parent.resumable(step) if same else (parent.at(step), None)
    base = load_model(new)
    matrices = placed_parameters(parent.folder.origin(base.params) | edited, base.model.placement)
    start = with_matrices(base, matrices)
    if same:
        require_same_files(parent.folder, config)
        new, facts = rest_of(path, config, prepared.facts, step, new, changes.get("count"))
    else:
        facts = choose_facts(new, start, report)
    contexts = prepared.contexts if same and new.seed == config.seed else draw_contexts(new, start)
    alike = same and all(getattr(new, name) == getattr(config, name) for name in CUT_BY)
    cut = recorded_cut(parent.folder) if alike else None
    ready = prepare(new, base, facts, contexts, report, matrices, cut)
    plan = plan_of(new, ready)  # what cannot be planned leaves no folder
    state = first_state(new, ready, report) if state is None else state
    origin = {"matrices": sorted(matrices), "fingerprint": fingerprint(matrices)}
    about = {"run": str(path), "step": step, **origin}
    return finish(new, new_folder(new, ready, state, matrices, about), ready, plan, report, stop)


def rest_of(
    path: str | Path, config: RunConfig, facts: list[Fact], step: int, new: RunConfig, count: int | None
) -> tuple[RunConfig, list[Fact]]:
    """A branch's settings `new` and its facts, where it goes on with what its run had left after a step.

    Raises RunError where nothing is left.
    """
    if method(new.editor).request == "text":
        rows = (new.text.skip + step) * (config.batch_size or 1)
        text = dataclasses.replace(new.text, skip=-(-rows // (new.batch_size or 1)))
        count = config.count - step if count is None else count
        if not count:
            raise RunError(
                f"{path} has no batches left after step {step}: ask for more with --count, or name an earlier "
                "step"
            )
        return dataclasses.replace(new, text=text, count=count), facts
    left = facts[step * (config.batch_size or len(facts)) :][:count]
    if not left:
        raise RunError(
            f"{path} has no facts left after step {step}: name others with --facts, or an earlier step"
        )
    return dataclasses.replace(new, count=len(left)), left


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
