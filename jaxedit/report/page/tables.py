"""The page's tables: scores of runs, their settings, their growth laws."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.report.page.run_figures import most_grown, place_of
from jaxedit.report.page.source import Source
from jaxedit.report.record import SCORES, RunRecord, layer_of
from jaxedit.report.tables import percent
from jaxedit.trajectory.files import sensible

SETTINGS = (
    "model",
    "dtype",
    "facts",
    "count",
    "known",
    "editor",
    "transforms",
    "batch_size",
    "chunk",
    "seed",
)
VERSIONS = ("jaxedit", "jax", "flax")


class Table(NamedTuple):
    """One table of plain text; the first column heads the rows."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numeric: bool = True  # whether all but the first column are set to the right
    groups: int = 0  # rows that belong together, under one heading


def tables(sources: Sequence[Source], labels: Sequence[str]) -> list[Table]:
    """Summary and settings; growth laws where they were measured."""
    found = [summary(sources, labels), settings(sources, labels)]
    laws = growth_laws(sources, labels)
    return [*found, laws] if laws.rows else found


def summary(sources: Sequence[Source], labels: Sequence[str]) -> Table:
    """Three rows a run, as `run_table` prints them."""
    rows = []
    for source, label in zip(sources, labels, strict=True):
        record = source.record
        edits = str(record.edits[-1]) if record.finished else f"{record.edits[-1]} of {record.asked}"
        phases = {"unedited": record.unedited, "right after": record.right_after(), "final": record.final}
        for phase, means in phases.items():
            about = (label, record.editor, edits, str(record.refused)) if phase == "unedited" else ("",) * 4
            scores = [percent(means.get(name)) for name in (*SCORES, "S")]
            growth = (_growth(record), place_of(most_grown(record))) if phase == "final" else ("", "")
            rows.append((*about, phase, *scores, *growth))
    columns = ("run", "editor", "edits", "refused", "scored", *SCORES, "S", "growth", "matrix")
    caption = "Scores and growth in percent; growth is that of the edited matrix whose norm changed most."
    stopped = [label for source, label in zip(sources, labels, strict=True) if not source.record.finished]
    if stopped:
        caption += f" Not finished: {', '.join(stopped)}; `jaxedit resume` goes on."
    return Table("summary", "Summary", caption, columns, rows, groups=3)


def settings(sources: Sequence[Source], labels: Sequence[str]) -> Table:
    """A column a run."""
    rows = [
        (name.replace("_", " "), *(_text(source.config.get(name)) for source in sources)) for name in SETTINGS
    ]
    rows += [
        ("settings of the editor", *(_given(source.config.get("settings")) for source in sources)),
        ("layers edited", *(_layers(source.record) for source in sources)),
        ("preset", *(_text(source.environment.get("preset")) for source in sources)),
        ("base weights", *(_text(source.environment.get("fingerprint"))[:12] for source in sources)),
        ("devices", *(_text(source.environment.get("devices")) for source in sources)),
        ("Python", *(_text(source.environment.get("python")) for source in sources)),
        ("versions", *(_versions(source.environment.get("versions")) for source in sources)),
    ]
    caption = "As the runs recorded them; everything else is in config.json and environment.json below."
    return Table("settings", "Settings", caption, ("", *labels), rows, numeric=False)


def growth_laws(sources: Sequence[Source], labels: Sequence[str]) -> Table:
    """The law that wins by matrix and series, with the intervals of its parameters."""
    rows: list[tuple[str, ...]] = []
    for source, label in zip(sources, labels, strict=True):
        with sensible(f"growth.json of {label}"):
            rows += (row for law in sorted(source.laws.items(), key=_layer) for row in _law_rows(label, *law))
    columns = ("run", "matrix", "series", "law", "parameters [95% interval]", "R²", "alignment share")
    caption = (
        "How norm and distance grow with the updates t. No law wins where the one that fits best does not foresee "
        "best. Alignment share: 0 for a random walk, towards 1 where updates point along the matrix."
    )
    return Table("laws", "Growth laws", caption, columns, rows, numeric=False)


def _layer(law: tuple[str, Any]) -> Any:
    return layer_of(law[0])


def _law_rows(label: str, matrix: str, found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for series, name in (("path_norm", "‖W‖"), ("path_distance", "‖W − W₀‖")):
        if series not in found:
            continue
        winner, laws = found[series]["winner"], found[series]["laws"]
        law = winner or max(laws, key=lambda name: laws[name]["weight"])
        params = ", ".join(
            f"{key} = {x['value']:.4g} [{x['low']:.4g}, {x['high']:.4g}]".replace(" ", "\u00a0")
            for key, x in laws[law]["params"].items()
        )
        chosen, fit = winner or f"none ({law} fits)", f"{laws[law]['r2']:.4f}"
        yield label, place_of(matrix), name, chosen, params, fit, f"{found['alignment_share']:.3f}"


def documents(source: Source) -> str:
    """config.json and environment.json, to read."""
    return json.dumps(
        {"config": source.config, "environment": source.environment}, indent=2, ensure_ascii=False
    )


def _growth(record: RunRecord) -> str:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 100 * record.grown(most_grown(record))
    return f"{value:+.2f}" if np.isfinite(value) else "not finite"


def _layers(record: RunRecord) -> str:
    layers = sorted({layer_of(path) for path in record.norm} - {-1})
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers)) or "–"


def _given(values: Any) -> str:
    """Departures from the preset."""
    given = {name: value for name, value in (values or {}).items() if value is not None}
    return ", ".join(f"{name} = {_text(value)}" for name, value in given.items()) or "preset"


def _versions(values: Any) -> str:
    return ", ".join(f"{name} {values[name]}" for name in VERSIONS if name in (values or {})) or "–"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
