"""The figure of causal tracing: average indirect effects by kind of token and layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxedit.report.figures import FAINT, INK, STYLE, save

KINDS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after it",
    "further tokens",
    "last token",
)  # in the order of jaxedit.types.FIRST_SUBJECT ... LAST
COLOURS = {"residual": "Purples", "mlp": "Greens", "attention": "Reds"}
WORDS = {"residual": "residual stream", "mlp": "MLP output", "attention": "attention output"}


class TraceMap(NamedTuple):
    """Average indirect effects of one site."""

    site: str
    window: int  # layers put back together
    effect: Float[np.ndarray, "6 L"]  # NaN for a kind that no fact has
    facts: Float[np.ndarray, "6"]  # facts that have such a token


def write_trace_figure(maps: Sequence[TraceMap], folder: str | Path, title: str) -> list[Path]:
    """Writes `trace` as PNG and SVG, one panel a site; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = trace_figure(maps, title)
        return [save(figure, folder / f"trace.{suffix}") for suffix in ("png", "svg")]


def trace_figure(maps: Sequence[TraceMap], title: str) -> Figure:
    """Heat maps side by side, kind of token by layer; a ring marks the highest effect of each."""
    figure = Figure(figsize=(2.1 + 2.7 * len(maps), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axis, found in zip(axes, maps, strict=True):
        _panel(axis, found)
    labels = [f"{kind} ({count:.0f})" for kind, count in zip(KINDS, maps[0].facts, strict=True)]
    axes[0].set_yticks(range(len(KINDS)), labels)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _panel(axis: Axes, found: TraceMap) -> None:
    shown = np.ma.masked_invalid(found.effect)
    image = axis.imshow(
        shown,
        aspect="auto",
        cmap=COLOURS[found.site],
        vmin=min(0.0, float(shown.min())),
        interpolation="nearest",
    )
    kind, layer = np.unravel_index(shown.argmax(), shown.shape)
    ring: Any = {"marker": "o", "mfc": "none", "mew": 1.2, "ms": 6.5}
    axis.plot(layer, kind, color="white", **ring | {"mew": 2.6})
    axis.plot(layer, kind, color=INK, **ring)
    layers = "1 layer" if found.window == 1 else f"{found.window} layers"
    axis.set_title(f"{WORDS[found.site]}, {layers}", fontweight="normal", fontsize=8.5)
    axis.set_xlabel("layer put back" if found.window == 1 else "centre of the layers put back")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.grid(False)
    axis.set_facecolor("#F2F2F2")
    axis.spines[:].set_visible(False)
    bar = axis.figure.colorbar(image, ax=axis, location="bottom", shrink=0.9, aspect=28, pad=0.03)
    bar.set_label("gain in p(object)", fontsize=7.5)
    bar.ax.tick_params(labelsize=7, color=FAINT)
    bar.ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    bar.outline.set_visible(False)
