"""Bands over seeds, tables and figures of the experiments."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from experiments.common import NULLS, Arm, Json, Study, console
from jaxedit.report.figures import FAINT, save

CONFIDENCE = 0.95
ABSENT = "–"  # in tables
WIDE = 10.0  # ratio of the largest to the smallest value from which an axis is logarithmic
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C564B", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
NULL_MARKERS = {"random": "x", "turned": "+"}
NULL_SIGNS = {"random": "crosses", "turned": "plus signs"}
NULL_DASHES = {"random": ":", "turned": (0, (1, 4))}
OWN = ("memit", "alphaedit", "memit-history", "encore", "r-rome", "ft")
"""Arms that have the same colour in every figure."""
STILL = 1e-5  # growth within which a norm is held, so that its steps are rounding
HEAD = (
    "arm",
    "ES",
    "PS",
    "NS",
    "ES, end",
    "kept of the youngest",
    "kept of the oldest",
    "growth",
    "change",
    "updates that raise it",
    "recall",
    *NULLS,
    "perplexity",
    "KL",
    "entropy",
    "F1",
)
SHOWN = ("facts", "edited", *NULLS, "right_after", "final", "retention", "refused")
Tables = Mapping[str, Sequence[Json]]
"""By arm, `common.measured` of every seed."""


class Band(NamedTuple):
    """Mean of several seeds and its 95% confidence interval by Student's t; no interval for one seed."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(values: Sequence[Any]) -> Band:
    """Over the first axis."""
    given = np.asarray(values, np.float64)
    mean, count = given.mean(axis=0), len(given)
    if count < 2:
        return Band(mean, mean, mean)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * given.std(axis=0, ddof=1) / np.sqrt(count)
    return Band(mean, mean - half, mean + half)


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean and half the interval of one number; a dash where there is none."""
    found = band(values)
    if np.isnan(found.mean):
        return ABSENT
    mean, half = (
        f"{x:.{digits}f}" if abs(x) < 1e5 else f"{x:.1e}" for x in (found.mean, found.high - found.mean)
    )
    return mean if len(values) < 2 else f"{mean} ± {half}"


def growth(table: Json) -> np.ndarray:
    """||W_t|| / ||W_0|| of all edited matrices together, after every update; the first entry is 1."""
    return _together(table["norm"])


def rises(table: Json) -> float:
    """Share of updates after which a matrix's norm is larger, mean over the matrices; NaN where the norm is held."""
    if np.abs(growth(table) - 1.0).max() < STILL:
        return float("nan")
    return float(np.mean([np.diff(norm) > 0 for norm in table["norm"].values()]))


def changes(table: Json) -> np.ndarray:
    """||W_t - W_0|| / ||W_0|| of all edited matrices together, where ability was measured.

    From the norm of the random model, whose change is as large: a Gaussian change of n entries is at right angles to
    W_0 but for a share of 1 / sqrt(n).
    """
    return np.sqrt(np.maximum(np.square(at_measurements(table, "random")) - 1.0, 0.0))


def at_measurements(table: Json, model: str = "edited") -> np.ndarray:
    """Growth of the edited model, or of a null model, where ability was measured."""
    norms = table[model]["norm"]
    return _together({path: [norm[path] for norm in norms] for path in norms[0]})


def _together(norms: Mapping[str, Sequence[float]]) -> np.ndarray:
    squares = np.sum([np.square(norm) for norm in norms.values()], axis=0)
    return np.sqrt(squares / squares[0])


def at_end(table: Json, model: str, name: str) -> float:
    """A measure of ability after the last edit; NaN where it was not asked."""
    return float(table[model].get(name, [np.nan])[-1])


def kept(table: Json, age: int) -> float:
    """Of the edits of a group of ages that took right after, the share that still do at the end; NaN without any."""
    return float(table["retention"][age]["kept"]) if table["retention"] else float("nan")


def summary_row(label: str, tables: Sequence[Json]) -> list[str]:
    """One line of the common table; scores in percent."""

    def scores(when: str, name: str) -> list[float]:
        return [100 * table[when].get(name, np.nan) for table in tables]

    def last(model: str, name: str, factor: float = 1.0) -> list[float]:
        return [factor * at_end(table, model, name) for table in tables]

    return [
        f"`{label}`",
        *(shown(scores("right_after", name), 1) for name in ("ES", "PS", "NS")),
        shown(scores("final", "ES"), 1),
        *(shown([100 * kept(table, age) for table in tables], 1) for age in (0, -1)),
        shown([growth(table)[-1] for table in tables], 3),
        shown([changes(table)[-1] for table in tables]),
        shown([100 * rises(table) for table in tables], 1),
        shown(last("edited", "recall", 100), 1),
        *(shown(last(null, "recall", 100), 1) for null in NULLS),
        shown(last("edited", "perplexity")),
        shown(last("edited", "kl"), 3),
        shown(last("edited", "entropy"), 0),
        shown(last("edited", "f1", 100), 1),
    ]


def summary_table(tables: Tables) -> list[str]:
    """All arms; columns from recall on are of the model at the end. What was asked of no arm has no column.

    Edits are kept that took right after and still do: of the youngest quarter, of the oldest. Change is `changes`.
    """
    rows = [summary_row(label, found) for label, found in tables.items()]
    measured = [any(row[i] != ABSENT for row in rows) for i in range(len(HEAD))]
    head, *lines = (list(compress(row, measured)) for row in (HEAD, *rows))
    return markdown(head, lines)


def curves(tables: Tables, null: bool = True) -> Figure:
    """Norm, recall of facts not edited and perplexity against edits, and recall against the size of the change."""
    figure, axes = sheet(2, 2)
    panels = axes.ravel()
    nulls = NULLS if null else {}
    looks = looks_of(tables)
    for label, found in tables.items():
        colour, style = looks[label].colour, looks[label].dash
        facts, asked = found[0]["facts"], found[0]["edited"]
        line(panels[0], found[0]["edits"], [growth(table) for table in found], label, colour, style)
        if "recall" in asked:
            line(panels[1], facts, _ability(found, "edited", "recall", 100), "", colour, style)
            against(panels[3], found, "edited", color=colour, ls=style, marker=".")
        if "perplexity" in asked:
            line(panels[2], facts, _ability(found, "edited", "perplexity"), "", colour, style, True)
        for name in nulls:
            faint = {"color": colour, "lw": 0.8, "alpha": 0.7, "ls": NULL_DASHES[name]}
            marked = {"marker": NULL_MARKERS[name], "ms": 3}
            if "recall" in asked:
                recall = band(_ability(found, name, "recall", 100)).mean
                panels[1].plot(facts, recall, **faint, **marked)
                against(panels[3], found, name, **faint, **marked)
            if "perplexity" in asked:
                logs = band([*np.log(_ability(found, name, "perplexity"))]).mean
                panels[2].plot(facts, np.exp(logs), **faint, **marked)
    _label(panels)
    what = "; ".join(
        f"{NULL_SIGNS[name]} a random change of the same {match}" for name, match in nulls.items()
    )
    figure.legend(loc="outside lower center", ncols=4, title=f"dotted: {what}" if what else None)
    return figure


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dash: str
    marker: str


def looks_of(labels: Collection[str]) -> dict[str, Look]:
    """By arm: those of `OWN` as in every figure, the others in the colours that are left."""
    names = [label for label in labels if label not in OWN]
    left = [colour for i, colour in enumerate(COLOURS) if i >= len(OWN) or OWN[i] not in labels]
    first, found = int(len(names) < len(labels)), {}
    for i, label in enumerate(names):
        again = i // len(left) + first
        look = Look(left[i % len(left)], DASHES[again % len(DASHES)], MARKERS[again % len(MARKERS)])
        found[label] = look
    own = {label: Look(COLOURS[i], DASHES[0], MARKERS[0]) for i, label in enumerate(OWN)}
    return {label: own.get(label) or found[label] for label in labels}


def against(axis: Axes, found: Sequence[Json], model: str, **style: Any) -> None:
    """Recall against the size of the change, which null models share with the edited one; means over seeds.

    From the first measurement after an edit on: before, there is no change.
    """
    sizes = band([changes(table) for table in found]).mean
    axis.plot(sizes[1:], band(_ability(found, model, "recall", 100)).mean[1:], **style)


def _ability(found: Sequence[Json], model: str, name: str, factor: float = 1.0) -> list[np.ndarray]:
    return [factor * np.asarray(table[model][name]) for table in found]


def _label(panels: np.ndarray) -> None:
    titles = (
        "norm of the edited matrices, over the unedited",
        "facts not edited that are recalled, %",
        "perplexity of held-out text",
        "recall against the size of the change",
    )
    for axis, title in zip(panels, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("facts edited")
    panels[3].set_xlabel("norm of the change, over that of the unedited")
    for axis in panels[:3]:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    for axis in (panels[0], panels[2]):
        log_if_wide(axis, "y")
    for axis in (panels[1], panels[3]):
        axis.set_ylim(0, 103)
    log_if_wide(panels[3], "x")
    level(panels[0], 1.0)
    for axis in panels:
        if not axis.get_lines():
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=FAINT)


def log_if_wide(axis: Axes, which: str) -> None:
    """A logarithmic axis where the values drawn so far span more than an order of magnitude."""
    drawn = np.concatenate(
        [[], *(np.asarray(line.get_data()[which == "y"], float) for line in axis.get_lines())]
    )
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if len(drawn) and drawn.max() > WIDE * drawn.min():
        axis.set(**{f"{which}scale": "log"})
        scale = axis.xaxis if which == "x" else axis.yaxis
        scale.set_major_locator(LogLocator(subs=(1,) if drawn.max() > 1e4 * drawn.min() else (1, 2, 5)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(NullFormatter())


def write(study: Study, name: str, numbers: Json, table: Sequence[str], figure: Figure | None = None) -> None:
    """`name`.json, .md and the figure, in the study's folder."""
    options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(study).items()}
    content = json.dumps({"options": options, **numbers}, indent=1)
    (study.out / f"{name}.json").write_text(content + "\n")
    (study.out / f"{name}.md").write_text("\n".join(table) + "\n")
    if figure is not None:
        for suffix in ("png", "pdf"):
            save(figure, study.out / f"{name}.{suffix}")
    console.print(f"Written: {study.out / name}.md", highlight=False)


def brief(tables: Tables) -> Json:
    """What a figure shows, as numbers."""
    return {
        label: [
            {name: table[name] for name in SHOWN}
            | {"growth": at_measurements(table).tolist(), "rises": rises(table)}
            for table in found
        ]
        for label, found in tables.items()
    }


def named(arms: Sequence[Arm], found: Sequence[Sequence[Json]]) -> Tables:
    """By label."""
    return {arm.label: tables for arm, tables in zip(arms, found, strict=True)}


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table, line by line."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def sheet(columns: int, rows: int = 1, height: float = 2.6) -> tuple[Figure, np.ndarray]:
    """A figure of panels."""
    figure = Figure(figsize=(8.4, 0.6 + height * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def line(
    axis: Axes,
    x: Sequence[float],
    values: Sequence[Any],
    label: str,
    colour: str,
    style: str = "-",
    factors: bool = False,
) -> None:
    """Mean and band over seeds; with `factors` those of the logarithms, for what differs by factors."""
    found = Band(*map(np.exp, band([*np.log(values)]))) if factors else band(values)
    axis.plot(x, found.mean, color=colour, ls=style, label=label)
    if len(values) > 1:
        axis.fill_between(x, found.low, found.high, color=colour, alpha=0.18, lw=0)


def level(axis: Axes, at: float) -> None:
    """A faint line to compare with."""
    axis.axhline(at, color=FAINT, lw=0.8, zorder=1)
