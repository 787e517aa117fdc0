"""Figures of runs: norms of the edited matrices and scores, against edits. Same runs, same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxedit.report.record import SCORES, RunRecord, layer_of

Format = Literal["png", "svg", "pdf"]
# Okabe and Ito's palette, safe for colour-blind readers
COLOURS = {"ES": "#0072B2", "PS": "#D55E00", "NS": "#009E73"}
DASHES = {"ES": "-", "PS": (0, (4, 1.6)), "NS": "-"}  # so that equal ES and PS both show
WORDS = {"ES": "efficacy ES", "PS": "paraphrase PS", "NS": "neighbourhood NS"}
INK, FAINT, BAND = "#333333", "#8C8C8C", "#DEDEDE"
PHASES = ("unedited", "right after", "final")
DATED = {".svg": ("Date",), ".png": ("Software",), ".pdf": ("CreationDate", "Creator", "Producer")}
LEGEND_ROWS = 8  # layers named singly; of more, only some
FEW = 12  # points of a line that are marked one by one
WIDE = 20.0  # ratio of largest to smallest norm from which the axis is logarithmic
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "savefig.dpi": 200,
    "svg.hashsalt": "jaxedit",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType: publishers do not take matplotlib's default, Type 3
}


def write_figures(
    runs: Sequence[RunRecord], folder: str | Path, formats: Sequence[Format] = ("png", "svg")
) -> list[Path]:
    """Writes `norms` and `scores` of the runs, one row a run, in each format; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in {"norms": norm_figure(runs), "scores": score_figure(runs)}.items():
            written += [save(figure, folder / f"{name}.{suffix}") for suffix in formats]
    return written


def norm_figure(runs: Sequence[RunRecord]) -> Figure:
    """Left: norms of the edited matrices among those of their kind; right: their growth in percent."""
    figure, axes = _rows(runs, height=2.5, widths=(1.0, 1.0))
    for run, (among, growth) in zip(runs, axes, strict=True):
        _norms(among, run)
        _growth(growth, run)
    axes[0][0].set_title(f"{_title(runs[0])}   norm of the edited matrices")
    axes[0][1].set_title("growth since the unedited model")
    for run, row in list(zip(runs, axes, strict=True))[1:]:
        row[0].set_title(_title(run))
    return figure


def score_figure(runs: Sequence[RunRecord]) -> Figure:
    """Left: running means of the scores right after each edit; right: unedited, right after, final."""
    figure, axes = _rows(runs, height=2.4, widths=(1.9, 1.0))
    for run, (running, phases) in zip(runs, axes, strict=True):
        _running(running, run)
        _phases(phases, run)
        running.set_title(_title(run))
        for axis in (running, phases):
            axis.set_ylim(0, 107)
            axis.set_yticks([0, 25, 50, 75, 100])
        phases.tick_params(labelleft=False)
    axes[0][0].set_title(f"{_title(runs[0])}   scores right after each edit, running mean")
    axes[0][1].set_title("all edits")
    handles = [mpl.lines.Line2D([], [], color=COLOURS[s], ls=DASHES[s], label=WORDS[s]) for s in SCORES]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _rows(runs: Sequence[RunRecord], height: float, widths: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(8.4, 0.5 + height * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, hspace=0.06)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(runs), 2, squeeze=False, width_ratios=widths)
    return figure, axes


def _title(run: RunRecord) -> str:
    return run.editor if run.editor in run.name else f"{run.name} ({run.editor})"


def _norms(axis: Axes, run: RunRecord) -> None:
    kind = run.same_kind(next(iter(run.norm)))
    if kind:
        axis.axhspan(min(kind), max(kind), color=BAND, lw=0, label=f"{len(kind)} layers not edited")
    drawn = [run.trajectory(path) for path in run.norm]
    _layers(axis, run, drawn)
    everything = np.concatenate([np.asarray(kind), *(norm for _, norm in drawn)])
    everything = everything[np.isfinite(everything) & (everything > 0)]
    if len(everything) and everything.max() / everything.min() > WIDE:
        axis.set_yscale("log")
    else:
        axis.margins(y=0.12)
    axis.set_ylabel("Frobenius norm")
    _edits_axis(axis, run)


def _growth(axis: Axes, run: RunRecord) -> None:
    drawn = [(run.trajectory(path)[0], 100 * run.growth(path)) for path in run.norm]
    axis.axhline(0.0, color=FAINT, lw=0.8, zorder=1)
    _layers(axis, run, drawn)
    values = np.concatenate([growth for _, growth in drawn])
    if np.nanmax(np.abs(values), initial=0.0) > 100 * WIDE:
        axis.set_yscale("symlog", linthresh=10)
    axis.set_ylabel("growth, %")
    _edits_axis(axis, run)
    handles, labels = axis.get_legend_handles_labels()
    left = axis.figure.axes[axis.figure.axes.index(axis) - 1].get_legend_handles_labels()
    band = [(h, t) for h, t in zip(*left, strict=True) if "not edited" in t]
    handles, labels = handles + [h for h, _ in band], labels + [t for _, t in band]
    axis.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0.0)


def _layers(axis: Axes, run: RunRecord, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    colours = mpl.colormaps["viridis"](np.linspace(0.12, 0.82, len(drawn)) if len(drawn) > 1 else [0.25])
    every = -(-len(drawn) // LEGEND_ROWS)
    for index, (path, (edits, values)) in enumerate(zip(run.norm, drawn, strict=True)):
        label = f"layer {layer_of(path)}" if index % every == 0 else None
        axis.plot(edits, values, color=colours[index], label=label, marker="o" if len(edits) <= FEW else "")


def _running(axis: Axes, run: RunRecord) -> None:
    axis.set_ylabel("share of probes, %")
    _edits_axis(axis, run)
    if not run.scores:
        axis.text(0.5, 0.5, "not scored during the run", transform=axis.transAxes, ha="center", color=FAINT)
        return
    for score in SCORES:
        values = 100 * run.running(score)
        if not np.isnan(values).all():
            marker = "o" if len(values) <= FEW else ""
            edits = np.arange(1, len(values) + 1)
            axis.plot(edits, values, color=COLOURS[score], ls=DASHES[score], marker=marker, clip_on=False)


def _phases(axis: Axes, run: RunRecord) -> None:
    means = dict(zip(PHASES, (run.unedited, run.right_after(), run.final), strict=True))
    for index, score in enumerate(SCORES):
        values = np.array([100 * means[phase].get(score, np.nan) for phase in PHASES])
        bars = axis.bar(np.arange(3) + 0.27 * (index - 1), values, width=0.24, color=COLOURS[score])
        labels = ["" if np.isnan(value) else f"{value:.0f}" for value in values]
        axis.bar_label(bars, labels, padding=1.5, fontsize=7, color=COLOURS[score])
    axis.set_xticks(range(3), PHASES)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, 2.5)


def _edits_axis(axis: Axes, run: RunRecord) -> None:
    axis.set_xlabel("edits")
    axis.set_xlim(0, max(int(run.edits[-1]), 1) * 1.01)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def save(figure: Figure, file: Path) -> Path:
    """Writes a figure without dates or versions, so that the same figure is the same bytes; returns the file."""
    figure.savefig(file, metadata=dict.fromkeys(DATED[file.suffix]))
    return file
