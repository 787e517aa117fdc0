"""The page's figures of measure folders: maps of layer by step, and profiles over layers with their controls."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxedit.diagnostics.meanings import ACTIVATION_MEASURES, PATH_MEASURES, WEIGHT_MEASURES
from jaxedit.report.page.figure import (
    FAINT,
    INK,
    Figure,
    Line,
    View,
    colour_of,
    layer_axis,
    line_view,
    map_view,
)
from jaxedit.report.page.source import Source
from jaxedit.report.record import kind_of, layer_of

MIDDLES = dict.fromkeys(("growth", "path_growth", "spectral_growth", "norm_ratio"), 1.0) | dict.fromkeys(
    ("path_alignment", "path_first_alignment", "path_persistence", "path_cross", "path_alignment_share"), 0.0
)  # where these measures say: no change
FIRST = ("residual", "mlp", "growth", "relative_distance", "frobenius", "overlap", "angle", "norm_ratio")
CONTROLS = ("_chance", "_floor", "_before")
FEW_STEPS = 24  # that stand side by side whatever lies between them
GROUPS = {
    "matrices": ("Edited matrices", "Subspaces are those of the leading singular vectors."),
    "vectors": (
        "Vectors inside the model",
        "Vectors of the same prompts in the edited and the unedited model; subspaces are those of their leading "
        "principal directions.",
    ),
}
BESIDE = (
    "Angles are in radians. Beside the edited model: the unedited one after a random change of the same size, where "
    "it was measured."
)
CONTROLLED = (
    "The same after the last step measured, beside its controls: a random change of the same size, what sampling "
    "alone makes (floor), what random subspaces give (chance), the unedited model."
)
Table = dict[tuple[str, str, str, str], dict[tuple[str, int], dict[int, float]]]
"""[matrix or vector, prompts, position, measure][model, step][layer]."""


def measure_figures(sources: Sequence[Source], labels: Sequence[str]) -> Iterator[Figure]:
    """Two figures of matrices and two of vectors inside the model, as far as they were measured."""
    for group, (heading, about) in GROUPS.items():
        tables = [
            (label, table_of(source.measures, group)) for source, label in zip(sources, labels, strict=True)
        ]
        maps = [view for label, table in tables for view in _maps(label, table, group)]
        if maps:
            menus = ("run", "of", "prompts", "position", "measure")
            columns = ("model", "updates", "layer", "value")
            caption = f"{about} {BESIDE}"
            yield Figure(f"{group}-map", f"{heading}, layer by step", caption, maps, columns, menus)
        profiles = [view for label, table in tables for view in _profiles(label, table, group)]
        if profiles:
            columns = ("panel", "model", "layer", "value")
            title = f"{heading} by layer, with controls"
            yield Figure(f"{group}-layers", title, CONTROLLED, profiles, columns, menus)


def table_of(rows: Sequence[Mapping[str, Any]], group: str) -> Table:
    """The rows of a group by what is chosen in the menus; what says most comes first."""
    table: Table = {}
    for row in rows:
        if bool(row["prompts"]) == (group == "vectors"):
            what = kind_of(row["where"]).removeprefix("layers.")
            key = (what, row["prompts"], row["position"], row["measure"])
            table.setdefault(key, {}).setdefault((row["model"], row["step"]), {})[layer_of(row["where"])] = (
                row["value"]
            )
    places = {key[:3]: place for place, key in reversed(list(enumerate(table)))}
    order = {name: place for place, name in enumerate(FIRST)}

    def rank(key: tuple[str, str, str, str]) -> tuple[int, int, int]:
        return order.get(key[0], len(order)), places[key[:3]], order.get(key[3], len(order))

    return {key: table[key] for key in sorted(table, key=rank)}


def _maps(label: str, table: Table, group: str) -> Iterator[View]:
    for (what, prompts, position, measure), values in table.items():
        if measure.endswith(CONTROLS):
            continue
        steps = sorted({step for model, step in values if model != "unedited"})
        if not steps:
            continue
        layers = sorted({layer for (model, _), row in values.items() if model != "unedited" for layer in row})
        panels = []
        for model, title in (("edited", "edited"), ("random", "random change of the same size")):
            rows = [values.get((model, step), {}) for step in steps]
            if any(rows):
                z = np.array([[row.get(layer, np.nan) for row in rows] for layer in layers])
                panels.append((title, z))
        x: list[Any] = [str(step) for step in steps] if len(steps) <= FEW_STEPS else list(steps)
        names = [str(layer) if layer >= 0 else "–" for layer in layers]
        meaning = meaning_of(measure, group)
        key = (label, what, prompts, position, measure)
        middle = MIDDLES.get(measure)
        yield map_view(key, panels, x, names, "updates", measure.replace("_", " "), middle, meaning)


def _profiles(label: str, table: Table, group: str) -> Iterator[View]:
    for (what, prompts, position, measure), values in table.items():
        edited = [step for model, step in values if model == "edited"]
        if measure.endswith(CONTROLS) or measure.startswith("path_") or not edited:
            continue
        last, at = max(edited), (what, prompts, position)

        before = measure.removesuffix("_after") + "_before" if measure.endswith("_after") else ""
        drawn = [
            ("edited", values.get(("edited", last)), colour_of(0), "solid"),
            ("random change of the same size", values.get(("random", last)), colour_of(1), "dash"),
            (
                "sampling alone (floor)",
                table.get((*at, f"{measure}_floor"), {}).get(("edited", last)),
                FAINT,
                "dot",
            ),
            (
                "random subspaces (chance)",
                table.get((*at, f"{measure}_chance"), {}).get(("edited", last)),
                FAINT,
                "dashdot",
            ),
            ("unedited model", table.get((*at, before), {}).get(("edited", last)), INK, "dot"),
            ("layers that are not edited", _varied(values.get(("unedited", 0), {})), INK, "dot"),
        ]
        lines = [profile(name, row, colour, dash) for name, row, colour, dash in drawn if row]
        key = (label, what, prompts, position, measure)
        meaning = f"After {last} updates: {meaning_of(measure, group)}"
        axis = layer_axis(line.x for line in lines)
        yield line_view(key, [("", lines)], "layer", measure.replace("_", " "), x_axis=axis, note=meaning)


def _varied(row: dict[int, float]) -> dict[int, float]:
    """Nothing for measures that compare a matrix with itself."""
    return row if len(set(row.values())) > 1 else {}


def profile(name: str, row: Mapping[int, float], colour: str, dash: str) -> Line:
    """A line over layers."""
    layers = np.array(sorted(row))
    return Line(name, layers, np.array([row[layer] for layer in layers]), colour, dash, markers=True)


def meaning_of(measure: str, group: str) -> str:
    """A measure in words."""
    meanings = ACTIVATION_MEASURES if group == "vectors" else WEIGHT_MEASURES | PATH_MEASURES
    return f"{measure}: {meanings[measure]}" if measure in meanings else measure
