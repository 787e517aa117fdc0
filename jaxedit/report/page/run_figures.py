"""The page's figures of what runs record themselves: scores and norms."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxedit.report.figures import COLOURS as SCORE_COLOURS
from jaxedit.report.figures import PHASES, WIDE, WORDS
from jaxedit.report.page.figure import (
    FAINT,
    INK,
    Figure,
    Line,
    View,
    colour_of,
    dash_of,
    layer_axis,
    line_view,
    map_view,
    numbers,
    panel_layout,
    ramp,
)
from jaxedit.report.page.source import Source
from jaxedit.report.record import SCORES, RunRecord, kind_of, layer_of, projection_of

SCORE_DASHES = {"ES": "solid", "PS": "dash", "NS": "solid"}  # so that equal ES and PS both show
PERCENT: dict[str, Any] = {"range": [-3, 104], "dtick": 25, "zeroline": False}
FROM_0: dict[str, Any] = {"rangemode": "tozero"}
QUANTITIES = {
    "growth": "growth of ‖W‖, %",
    "norm": "Frobenius norm ‖W‖",
    "update": "Frobenius norm ‖Δ‖ of the update",
}
PROBES = {
    "rewrite": ("edited prompt", "p(new) − p(old)"),
    "paraphrase": ("paraphrases", "p(new) − p(old)"),
    "neighborhood": ("neighbourhood", "p(true) − p(new)"),
}


def run_figures(sources: Sequence[Source], labels: Sequence[str]) -> Iterator[Figure]:
    """All that these runs give, in the order of the page."""
    if any(source.record.scores for source in sources):
        yield running_scores(sources, labels)
    if any(source.record.finished or source.record.scores for source in sources):
        yield phase_scores(sources, labels)
    if any(source.record.scores for source in sources):
        yield single_edits(sources, labels)
    if len(sources) > 1:
        yield compared_norms(sources, labels)
    yield norms_by_matrix(sources, labels)
    yield norm_maps(sources, labels)
    if any(source.record.unedited_norm for source in sources):
        yield norms_by_layer(sources, labels)


def running_scores(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """One run: a line a score. Several: a panel a score, a line a run."""

    def line(index: int, score: str, name: str, colour: str, dash: str) -> Iterator[Line]:
        record = sources[index].record
        if record.scores:
            values = 100 * record.running(score)
            yield Line(name, np.arange(1, len(values) + 1), values, colour, dash)

    if len(sources) == 1:
        lines = [x for s in SCORES for x in line(0, s, WORDS[s], SCORE_COLOURS[s], SCORE_DASHES[s])]
        panels = [("", lines)]
    else:
        panels = [
            (
                WORDS[s],
                [x for i, name in enumerate(labels) for x in line(i, s, name, colour_of(i), dash_of(i))],
            )
            for s in SCORES
        ]
    view = line_view((), panels, "edits", "share of probes, %", PERCENT, FROM_0, ".1f")
    caption = (
        "Every edit is scored once, right after it was made; a point is the mean of all edits so far. A probe "
        "counts where the wanted object is the more likely one."
    )
    columns = ("score", "line", "edits", "percent")
    return Figure("scores", "Scores right after each edit, running mean", caption, [view], columns)


def phase_scores(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """Means of all edits on the unedited model, right after each edit, and on the final model."""

    def values(record: RunRecord, score: str) -> np.ndarray:
        means = (record.unedited, record.right_after(), record.final)
        return np.array([100 * mean.get(score, np.nan) for mean in means])

    traces: list[dict[str, Any]] = []
    panels = ("",) if len(sources) == 1 else (*SCORES, "S")
    names = (*SCORES, "S") if len(sources) == 1 else labels
    for panel, title in enumerate(panels, start=1):
        for index, name in enumerate(names):
            score, which = (name, 0) if len(sources) == 1 else (title, index)
            shown = values(sources[which].record, score)
            suffix = "" if panel == 1 else str(panel)
            colour = {**SCORE_COLOURS, "S": INK}[score] if len(sources) == 1 else colour_of(index)
            traces.append(
                {
                    "type": "bar",
                    "name": WORDS.get(name, name) if name != "S" else "score S",
                    "legendgroup": name,
                    "showlegend": panel == 1,
                    "x": list(PHASES),
                    "y": numbers(shown),
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "marker": {"color": colour},
                    "hovertemplate": "%{y:.1f} %",
                }
                | ({"texttemplate": "%{y:.0f}", "textposition": "outside"} if len(sources) == 1 else {})
            )
    titles = [WORDS.get(title, title and "score S") for title in panels]
    layout = panel_layout(
        titles, "", "mean of all edits, %", PERCENT | {"range": [0, 109]}, {"showgrid": False}
    )
    layout |= {"barmode": "group", "bargap": 0.3, "hovermode": "x unified"}
    caption = (
        "ES, PS and NS on the edited prompt, its paraphrases and prompts of neighbouring subjects; S is their "
        "harmonic mean. What was right after an edit and is lost on the final model was forgotten to later edits."
    )
    columns = ("score", "line", "when", "percent")
    return Figure(
        "phases",
        "Scores of all edits: before, right after, final",
        caption,
        [View((), traces, layout)],
        columns,
    )


def single_edits(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """A point an edit: how far the wanted object leads, right after the edit and on the final model."""
    views = [
        edits_view((label, word, when), source, scores, probe, unit)
        for source, label in zip(sources, labels, strict=True)
        for probe, (word, unit) in PROBES.items()
        for when, scores in zip(PHASES[1:], (source.record.scores, source.record.final_scores), strict=True)
        if not np.isnan(scores.get(f"{probe}_magnitude", np.nan)).all()
    ]
    caption = (
        "How far the wanted object leads the other one, in probability, right after its edit or on the final "
        "model; above 0 it wins. Drag over points to select them: their facts and mean are listed."
    )
    columns = ("fact", "outcome", "edit", "magnitude")
    return Figure("edits", "Each edit", caption, views, columns, ("run", "prompts", "when"), True)


def edits_view(
    key: tuple[str, ...], source: Source, scores: Mapping[str, np.ndarray], probe: str, unit: str
) -> View:
    """One panel of `single_edits`."""
    magnitude, success = scores[f"{probe}_magnitude"], scores[f"{probe}_success"]
    facts = source.facts if len(source.facts) == len(magnitude) else [""] * len(magnitude)
    traces = []
    for name, chosen, colour, symbol in (
        ("all probes succeed", success >= 1 - 1e-6, "#0072B2", "circle"),
        ("some or all fail", success < 1 - 1e-6, "#D55E00", "x"),
    ):
        (at,) = np.nonzero(chosen)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": numbers(at + 1),
                "y": numbers(magnitude[at]),
                "customdata": [facts[i] for i in at],
                "marker": {"color": colour, "symbol": symbol, "size": 7},
                "hovertemplate": "edit %{x}, %{customdata}<br><b>%{y:.3f}</b><extra></extra>",
            }
        )
    layout = panel_layout([""], "edit", unit, {"range": [-1.05, 1.05]}, FROM_0)
    return View(key, traces, layout | {"hovermode": "closest", "showlegend": True})


def compared_norms(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """A line a run: the matrix that grew most."""
    views = []
    for quantity, title in QUANTITIES.items():
        lines = []
        for index, (source, label) in enumerate(zip(sources, labels, strict=True)):
            path = most_grown(source.record)
            x, y = _series(source, path, quantity)
            lines.append(Line(label, x, y, colour_of(index), dash_of(index)))
        views.append(
            line_view((quantity_word(quantity),), [("", lines)], "edits", title, _scale(lines), FROM_0)
        )
    caption = "Of each run the edited matrix whose norm changed most: " + "; ".join(
        f"{label} {place_of(most_grown(source.record))}"
        for source, label in zip(sources, labels, strict=True)
    )
    columns = ("panel", "run", "edits", "value")
    title = "Norm growth of the runs compared"
    return Figure("growth-compared", title, caption + ".", views, columns, ("quantity",))


def norms_by_matrix(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """A line a layer."""
    views = []
    for source, label in zip(sources, labels, strict=True):
        for kind, paths in kinds(source.record).items():
            for quantity, title in QUANTITIES.items():
                lines = []
                for path, colour in zip(paths, ramp(len(paths)), strict=True):
                    name = f"layer {layer_of(path)}" if layer_of(path) >= 0 else path
                    lines.append(Line(name, *_series(source, path, quantity), colour))
                key = (label, kind, quantity_word(quantity))
                views.append(line_view(key, [("", lines)], "edits", title, _scale(lines), FROM_0))
    caption = (
        "Everything edited after each update. Growth is that of the Frobenius norm since the unedited model; of "
        "vectors, and in a run that is not finished, since its first update."
    )
    columns = ("panel", "matrix", "edits", "value")
    menus = ("run", "matrix", "quantity")
    return Figure("norms", "Norms of the edited matrices", caption, views, columns, menus)


def norm_maps(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """Layer by edits."""
    views = []
    for source, label in zip(sources, labels, strict=True):
        for kind, paths in kinds(source.record).items():
            for quantity, title in QUANTITIES.items():
                series = [_series(source, path, quantity) for path in paths]
                z = np.array([y for _, y in series])
                x = numbers(series[0][0])
                layers = [str(layer_of(path)) if layer_of(path) >= 0 else path for path in paths]
                middle = 0.0 if quantity == "growth" and (z < 0).any() else None
                key = (label, kind, quantity_word(quantity))
                views.append(map_view(key, [("", z)], x, layers, "edits", title, middle))
    caption = "The same numbers by layer and edits."
    columns = ("panel", "edits", "layer", "value")
    menus = ("run", "matrix", "quantity")
    return Figure("norm-map", "Heat map of norms, layer by edits", caption, views, columns, menus)


def norms_by_layer(sources: Sequence[Source], labels: Sequence[str]) -> Figure:
    """The edited matrices among those of their kind in all layers."""
    views = []
    for source, label in zip(sources, labels, strict=True):
        record = source.record
        for kind, paths in kinds(record).items():
            before = {layer_of(p): n for p, n in record.unedited_norm.items() if kind_of(p) == kind}
            if len(before) < 2:
                continue
            layers = np.array(sorted(before))
            edited = np.array([layer_of(path) for path in paths])
            after = np.array([record.final_norm.get(path, record.norm[path][-1]) for path in paths])
            unedited = np.array([before[layer] for layer in layers])
            lines = [
                Line("unedited model", layers, unedited, FAINT, markers=True),
                Line("edited layers, after the run", edited, after, colour_of(1), markers=True),
            ]
            view = line_view(
                (label, kind), [("", lines)], "layer", QUANTITIES["norm"], x_axis=layer_axis([layers])
            )
            view.traces[1]["mode"] = "markers"
            views.append(view)
    caption = "Whether the edited matrices leave the range of those that nothing was written into."
    columns = ("panel", "model", "layer", "norm")
    return Figure("norm-layers", "Norms by layer", caption, views, columns, ("run", "matrix"))


def kinds(record: RunRecord) -> dict[str, list[str]]:
    """Edited matrices by kind, from the lowest layer to the highest; those of no layer together."""
    found: dict[str, list[str]] = {}
    for path in record.norm:
        found.setdefault(kind_of(path) if layer_of(path) >= 0 else "outside the layers", []).append(path)
    return found


def most_grown(record: RunRecord) -> str:
    """The edited matrix whose norm changed most, relative to its start."""
    with np.errstate(invalid="ignore", divide="ignore"):
        change = {path: abs(record.grown(path)) for path in record.matrices}
    return max(change, key=lambda path: -1.0 if np.isnan(change[path]) else change[path])


def place_of(path: str) -> str:
    """A matrix in words."""
    layer = layer_of(path)
    return path if layer < 0 else f"layer {layer} {projection_of(path)}"


def quantity_word(quantity: str) -> str:
    """In the menu."""
    return {"growth": "growth, %", "norm": "‖W‖", "update": "‖Δ‖ of each update"}[quantity]


def _series(source: Source, path: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    edits, norm = source.record.trajectory(path)
    if quantity == "update":
        return source.record.edits, source.update_norm[path]
    with np.errstate(invalid="ignore", divide="ignore"):
        return edits, norm if quantity == "norm" else 100 * source.record.growth(path)


def _scale(lines: Sequence[Line]) -> dict[str, Any]:
    """Logarithmic for what is positive and spans more than `WIDE`."""
    values = np.concatenate([line.y for line in lines])
    values = values[np.isfinite(values)]
    wide = len(values) and values.min() > 0 and values.max() / values.min() > WIDE
    return {"type": "log", "dtick": 1} if wide else {}
