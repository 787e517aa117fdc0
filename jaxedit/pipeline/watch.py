"""Measuring a run while it goes on: what was found at a step is kept on the disk, for a run that is stopped."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxedit.disk import replace
from jaxedit.errors import RunError
from jaxedit.parallel import placed_parameters
from jaxedit.pipeline.asked import Asked
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.driver import rerun_of, when_needed
from jaxedit.pipeline.found import (
    ability_of,
    free,
    measures_of,
    plain,
    require_new,
    write_ability,
    write_measures,
)
from jaxedit.pipeline.measured import Measured, Row
from jaxedit.pipeline.plan import Plan
from jaxedit.pipeline.prepare import Prepared, Report
from jaxedit.pipeline.used import walk_used
from jaxedit.pipeline.ways import path_of_run, path_rows
from jaxedit.trajectory.replay import Matrices, Trajectory
from jaxedit.trajectory.store import RunFolder

FOLDER = "watch"
"""Within a run: what was found at each step so far."""


def require_room(config: RunConfig) -> None:
    """Raises ConfigError where what a new run finds would have no place."""
    for wanted, folder in (
        (config.watch.measure, measures_of(Path(config.out))),
        (config.watch.ability, ability_of(Path(config.out))),
    ):
        if wanted:
            require_new(folder)


class Watcher:
    """Looks at the models of a run, one by one, and writes what it found beside the run when it ends."""

    def __init__(self, config: RunConfig, prepared: Prepared, folder: RunFolder, plan: Plan, report: Report):
        self._watch, self._prepared, self._report = config.watch, prepared, report
        self._folder, self._run = folder.path / FOLDER, folder.path
        self._rerun = when_needed(lambda: rerun_of(config, folder, prepared, plan))
        every, last = config.watch.every, plan.updates
        self.steps = sorted({*range(0, last, every), last}) if self._watch.wanted else []

    def catch_up(self) -> None:
        """Looks at the steps that the run has and that were not looked at: the first, or the last before a stop."""
        found = self._found()
        missing = [step for step in self.steps if step <= found.steps and not self._file(step).is_file()]
        for step, now in walk_used(self._prepared, found, missing):
            self.look(step, placed_parameters(now, self._prepared.devices))

    def look(self, step: int, now: Matrices) -> None:
        """Measures the model after one of `steps`, which is on the disk, from its matrices as they would be used."""
        self._report(f"looking at step {step}", 0, 1)
        found, content = self._found(), {}
        if self._watch.measure:
            content["measures"] = [row._asdict() for row in self._measured.at(step, now, found)]
        if self._watch.ability:
            content["ability"] = plain(self._asked.at(step, now, found.folder))
        self._folder.mkdir(exist_ok=True)
        replace(self._file(step), json.dumps(content).encode())
        self._report(f"looking at step {step}", 1, 1)

    def end(self) -> None:
        """Writes the folders beside the run. Raises RunError where what was found at a step is damaged."""
        if not self.steps:
            return
        found = self._found()
        contents = [self._read(step) for step in self.steps]
        if self._watch.measure:
            config, rows = self._watch.measures, list[Row]()
            if config.path and found.folder.low_rank:
                rows += path_rows(path_of_run(found, self._measured.tops, self.steps[-1], self._report))
            if config.unedited:
                rows += self._measured.unedited()
            rows += [row for content in contents for row in content["measures"]]
            folder = free(measures_of(self._run), found.folder, self.steps, config)
            write_measures(folder, found.folder, self.steps, config, rows)
        if self._watch.ability:
            answers = [content["ability"] for content in contents]
            folder = free(ability_of(self._run), found.folder, self.steps, self._watch.questions)
            write_ability(folder, found.folder, self.steps, self._watch.questions, answers)

    @cached_property
    def _first(self) -> Matrices:
        return placed_parameters(self._found().at(0), self._prepared.devices)

    @cached_property
    def _measured(self) -> Measured:
        return Measured(self._watch.measures, self._prepared, self._first)

    @cached_property
    def _asked(self) -> Asked:
        return Asked(self._watch.questions, self._prepared, self._first)

    def _found(self) -> Trajectory:
        """The run as far as it has come."""
        editor, params = self._prepared.editor, self._prepared.params
        return Trajectory(RunFolder.open(self._run), params.edited, editor.init(params), self._rerun)

    def _file(self, step: int) -> Path:
        return self._folder / f"{step:06d}.json"

    def _read(self, step: int) -> dict[str, Any]:
        file = self._file(step)
        try:
            content = json.loads(file.read_bytes())
            return content | {"measures": [Row(**values) for values in content.get("measures", ())]}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise RunError(
                f"{file} is damaged ({error}): remove it, and `jaxedit resume {self._run}` looks "
                f"at that step again"
            ) from None
