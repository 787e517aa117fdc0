"""The folders beside a run that say what was found in it, and of which run they are."""

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.errors import ConfigError
from jaxedit.models.folders import new_folder
from jaxedit.pipeline.growth_record import growth_record
from jaxedit.pipeline.measured import Row
from jaxedit.pipeline.watch_config import AbilityConfig, MeasureConfig
from jaxedit.trajectory.store import RunFolder


def measures_of(run: Path) -> Path:
    """Where measures of a run lie unless they were put elsewhere."""
    return run.resolve().with_name(run.resolve().name + "-measures")


def ability_of(run: Path) -> Path:
    """Where a run's ability lies unless it was put elsewhere."""
    return run.resolve().with_name(run.resolve().name + "-ability")


def require_new(folder: Path) -> None:
    """Raises ConfigError where the folder is there already."""
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another folder with --out, or remove it")


def free(folder: Path, run: RunFolder, steps: Sequence[int], config: Any) -> Path:
    """The folder, free for writing; where another lies, the next name that is free.

    What asked the same of the same run, which a stop at its end left there, is removed.
    """
    if not folder.exists():
        return folder
    asked = json.loads(_asked(run, steps, config))
    try:
        there = json.loads((folder / "config.json").read_text())
        same = there | {"run": asked["run"]} == asked  # which may have been moved
    except (OSError, ValueError, TypeError):
        same = False
    if not same:
        return free(folder.with_name(f"{folder.name}-watched"), run, steps, config)
    shutil.rmtree(folder)
    return folder


def write_measures(
    folder: Path, run: RunFolder, steps: Sequence[int], config: MeasureConfig, rows: Sequence[Row]
) -> None:
    """Writes a folder; it appears complete or not at all.

    measures.jsonl has one object a number; `null` is what is infinite. measures.npz has the same by columns, for
    `numpy.load`. growth.json has the growth laws of every matrix, where updates are low rank. config.json says
    of which run, at which steps, and what was asked for.
    """
    with new_folder(folder) as draft:
        with (draft / "measures.jsonl").open("w") as file:
            file.writelines(json.dumps(plain(row)) + "\n" for row in rows)
        columns: dict[str, Any] = {}
        if rows:
            columns = dict(zip(Row._fields, map(np.array, zip(*rows, strict=True)), strict=True))
        np.savez_compressed(draft / "measures.npz", **columns)
        if laws := growth_record(rows, config.seed):
            (draft / "growth.json").write_text(json.dumps(laws, indent=1) + "\n")
        (draft / "config.json").write_text(_asked(run, steps, config))


def write_ability(
    folder: Path, run: RunFolder, steps: Sequence[int], config: AbilityConfig, found: Sequence[dict[str, Any]]
) -> None:
    """Writes a folder; it appears complete or not at all.

    ability.json has one object a step, `plain`; config.json is as that of `write_measures`.
    """
    with new_folder(folder) as draft:
        (draft / "ability.json").write_text(json.dumps(found, indent=1) + "\n")
        (draft / "config.json").write_text(_asked(run, steps, config))


def _asked(run: RunFolder, steps: Sequence[int], config: Any) -> str:
    asked = {
        "run": str(run.path),
        "identity": run.identity,
        "steps": list(steps),
        **dataclasses.asdict(config),
    }
    return json.dumps(asked, indent=2, default=str) + "\n"


def plain(value: Any) -> Any:
    """Named tuples as JSON objects, numbers that are not finite as None."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, list):
        return [plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
