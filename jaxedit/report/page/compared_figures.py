"""The page's figures of what was measured of several runs, one over the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxedit.report.page.figure import Figure, Line, View, colour_of, dash_of, layer_axis, line_view
from jaxedit.report.page.measure_figures import CONTROLS, GROUPS, meaning_of, profile, table_of
from jaxedit.report.page.source import Source

Key = tuple[str, str, str, str]
Steps = Mapping[int, Mapping[int, float]]
"""[step][layer]."""
MODELS = {"edited": "", "random": ", random change of the same size"}
CONTROL_DASH = "dot"
CAPTION = (
    "What was measured of at least two of the runs. Over edits: the mean of the layers measured, which for matrices "
    "are those that a run edits. By layer: after the last step measured. Dotted: the unedited model after a random "
    "change of the same size as that run's."
)


def compared_figures(sources: Sequence[Source], labels: Sequence[str]) -> Iterator[Figure]:
    """A figure of matrices and one of vectors, a line a run, where at least two runs were measured."""
    for group, (heading, _) in GROUPS.items():
        tables = [table_of(source.measures, group) for source in sources]
        views = list(_views(sources, labels, tables, group))
        if views:
            menus, columns = ("of", "prompts", "position", "measure", "along"), ("panel", "run", "x", "value")
            title = f"{heading}, the runs compared"
            yield Figure(f"{group}-compared", title, CAPTION, views, columns, menus)


def _views(
    sources: Sequence[Source], labels: Sequence[str], tables: Sequence[Mapping], group: str
) -> Iterator[View]:
    for key in dict.fromkeys(key for table in tables for key in table):
        measure = key[-1]
        if measure.endswith(CONTROLS):
            continue
        found = [{model: _steps(table.get(key, {}), model) for model in MODELS} for table in tables]
        if sum(bool(models["edited"]) for models in found) < 2:
            continue

        def lines(draw: Callable[..., Line], found: Sequence[Mapping[str, Steps]] = found) -> list[Line]:
            return [
                draw(
                    source, steps, label + words, colour_of(index), CONTROL_DASH if words else dash_of(index)
                )
                for index, (source, label, models) in enumerate(zip(sources, labels, found, strict=True))
                for (model, words), steps in zip(MODELS.items(), models.values(), strict=True)
                if steps
            ]

        title, note = measure.replace("_", " "), meaning_of(measure, group)
        yield line_view(
            (*key, "edits"),
            [("", lines(_over_edits))],
            "edits",
            title,
            x_axis={"rangemode": "tozero"},
            note=note,
        )
        by_layer = lines(_by_layer)
        axis = layer_axis(line.x for line in by_layer)
        yield line_view((*key, "layers"), [("", by_layer)], "layer", title, x_axis=axis, note=note)


def _steps(values: Mapping[tuple[str, int], Mapping[int, float]], model: str) -> Steps:
    return {step: row for (name, step), row in sorted(values.items()) if name == model}


def _over_edits(source: Source, steps: Steps, name: str, colour: str, dash: str) -> Line:
    edits = np.r_[0, source.record.edits]
    means = [np.mean(list(row.values())) for row in steps.values()]
    return Line(name, edits[list(steps)], np.array(means), colour, dash)


def _by_layer(source: Source, steps: Steps, name: str, colour: str, dash: str) -> Line:
    return profile(name, steps[max(steps)], colour, dash)
