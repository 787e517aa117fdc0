"""What the model of a stored run can still do, at any of its steps."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxedit.pipeline.asked import AbilityAt, Asked
from jaxedit.pipeline.history import trajectory
from jaxedit.pipeline.prepare import Report, quiet
from jaxedit.pipeline.used import walk_used
from jaxedit.pipeline.watch_config import AbilityConfig, check_questions
from jaxedit.trajectory.store import RunFolder


def ability_at(
    path: str | Path, steps: Iterable[int], config: AbilityConfig = AbilityConfig(), report: Report = quiet
) -> Iterator[AbilityAt]:
    """What a run's model can do after each of the steps given; step 0 is the model before the first update.

    Models are those one would use (`jaxedit.pipeline.used`), were the step the last.

    Raises:
        RunError: no such run or step. FactError: a task or a text cannot be used. ConfigError: there is nothing to
        ask, or a number out of range.
    """
    check_questions(config)
    chosen, stored = sorted(set(steps)), RunFolder.open(path)
    for step in chosen:
        stored.require_step(step)
    found, _, prepared = trajectory(path, report)
    asked = Asked(config, prepared, found.at(0))
    for done, (step, now) in enumerate(walk_used(prepared, found, chosen)):
        report("asking the model", done, len(chosen))
        yield asked.at(step, now, found.folder)
    report("asking the model", len(chosen), len(chosen))
