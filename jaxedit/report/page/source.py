"""What the page needs of a run and of its measure folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxedit.errors import ConfigError
from jaxedit.report.record import RunRecord, read_run
from jaxedit.trajectory.files import sensible
from jaxedit.trajectory.store import RunFolder

MEASURES = "-measures"
"""What `jaxedit measure` puts behind a run's name."""


class Source(NamedTuple):
    """A run and what was measured of it afterwards."""

    record: RunRecord
    config: dict[str, Any]
    environment: dict[str, Any]
    facts: list[str]  # identifiers in the order of the edits
    update_norm: dict[str, Float[np.ndarray, "U"]]  # ||Delta||_F of every update of each edited matrix
    measures: tuple[dict[str, Any], ...] = ()  # lines of measures.jsonl
    laws: Mapping[str, Any] = {}  # growth.json


def read_source(path: str | Path, measures: str | Path | None = None) -> Source:
    """Reads a run folder and, where given, its measure folder. Raises RunError where either is damaged."""
    record, folder = read_run(path), RunFolder.open(path)
    lines = folder.metrics()
    with sensible(path):
        norms = [line["delta_norm"] for line in lines]
        update_norm = {
            path: np.array([np.nan if norm[path] is None else norm[path] for norm in norms], np.float64)
            for path in record.norm
        }
        facts = [str(fact) for line in lines for fact in line["facts"]]
    found = Source(record, folder.read("config"), folder.read("environment"), facts, update_norm)
    return found if measures is None else _measured(found, Path(measures))


def labels_of(sources: Sequence[Source]) -> list[str]:
    """The runs' names, numbered where some are equal."""
    names = [source.record.name for source in sources]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _measured(source: Source, folder: Path) -> Source:
    file, laws = folder / "measures.jsonl", folder / "growth.json"
    with sensible(file):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["value"] = np.nan if row["value"] is None else float(row["value"])
            row["step"] = int(row["step"])
            for name in ("model", "where", "prompts", "position", "measure"):
                row[name] = str(row[name])
    with sensible(laws):
        found = dict(json.loads(laws.read_text())) if laws.is_file() else {}
    return source._replace(measures=tuple(rows), laws=found)


def measure_folders(runs: Sequence[Path], given: Sequence[Path] = ()) -> list[Path | None]:
    """The measure folder of each run: the one given that was made of it, else `RUN-measures` where there is one.

    Raises ConfigError where a folder is no measure folder, and where it was made of another run, though that may
    have had the same name.
    """
    identities = [RunFolder.open(run).identity for run in runs]
    found: dict[str, Path] = {}
    for folder in given:
        measured, identity = _measured_run(folder)
        if identity not in identities:
            raise ConfigError(f"{folder} has measures of {measured}, which is none of the runs named")
        found[identity] = folder
    return [
        found.get(identity) or _beside(run, identity) for run, identity in zip(runs, identities, strict=True)
    ]


def _beside(run: Path, identity: str) -> Path | None:
    folder = run.resolve().with_name(run.resolve().name + MEASURES)
    if not folder.exists():
        return None
    if _measured_run(folder)[1] != identity:
        raise ConfigError(
            f"{folder} has measures of another run that had this name: remove it, or name the right folder with "
            f"--measures"
        )
    return folder


def _measured_run(folder: Path) -> tuple[str, str]:
    """Path and identity of the run that a folder has measures of."""
    try:
        asked = json.loads((folder / "config.json").read_text())
        return str(asked["run"]), str(asked["identity"])
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{folder} is no folder that `jaxedit measure` wrote") from None
