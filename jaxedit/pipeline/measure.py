"""Measures of a stored run at any of its steps."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxedit.pipeline.history import trajectory
from jaxedit.pipeline.measured import Measured, Row
from jaxedit.pipeline.prepare import Report, quiet
from jaxedit.pipeline.used import walk_used
from jaxedit.pipeline.watch_config import MeasureConfig, check_measures
from jaxedit.pipeline.ways import path_of_run, path_rows


def measures_at(
    path: str | Path, steps: Iterable[int], config: MeasureConfig = MeasureConfig(), report: Report = quiet
) -> Iterator[Row]:
    """All measures of a run at the steps given, row by row; step 0 is the model before the first update.

    Models are those one would use (`jaxedit.pipeline.used`), were the step the last. Measures of the path are of
    the updates themselves, and come for every one up to the last step.

    Raises:
        RunError: no such run or step. ConfigError: a k that a matrix or a prompt set does not have.
    """
    check_measures(config)
    found, _, prepared = trajectory(path, report)
    chosen = sorted(set(steps))
    first = found.at(0)
    measured = Measured(config, prepared, first)
    if config.path and found.folder.low_rank:
        yield from path_rows(path_of_run(found, measured.tops, chosen[-1] if chosen else 0, report))
    if config.unedited:
        yield from measured.unedited()
    for done, (step, now) in enumerate(walk_used(prepared, found, chosen)):
        report("measuring", done, len(chosen))
        yield from measured.at(step, now, found)
    report("measuring", len(chosen), len(chosen))
