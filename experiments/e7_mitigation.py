"""E7: what holds the norm back, and whether that keeps ability: editors and transforms at equal edit success.

    python -m experiments.e7_mitigation [--model runs/small/llama]

The spectrum lock is the causal arm: with it the norm cannot grow, so that what is still lost is not lost by growth.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.arms import MITIGATIONS, NORM_AWARE, arm
from experiments.common import Json, Study, begin, every_seed
from experiments.drawing import (
    COLOURS,
    Tables,
    at_end,
    at_measurements,
    band,
    brief,
    curves,
    growth,
    log_if_wide,
    markdown,
    named,
    sheet,
    summary_table,
    write,
)
from experiments.interference import FORETOLD, Moved, foretold, moved

MARKERS = ("o", "s", "^")


@dataclasses.dataclass(frozen=True)
class Mitigation(Study):
    """Editors, and transforms of the updates of one of them."""

    editors: tuple[str, ...] = NORM_AWARE
    transforms: tuple[str, ...] = MITIGATIONS
    """Each on top of `base`."""
    base: str = "memit"
    least: float = 90.0
    """ES right after the edit, in percent, below which an arm is not at equal edit success."""


def main(options: Mitigation) -> None:
    begin(options)
    arms = [arm(options, editor) for editor in options.editors]
    arms += [arm(options, options.base, text) for text in options.transforms]
    tables = named(arms, every_seed(options, arms))
    far = {one.label: [moved(options, one, seed) for seed in options.seeds] for one in arms}
    below = [label for label, found in tables.items() if efficacy(found) < options.least]
    table = [
        *summary_table(tables),
        "",
        f"Below an ES of {options.least:g} right after the edit: {below or 'none'}.",
        "",
        *markdown(FORETOLD, foretold(tables, far)),
    ]
    numbers = {"below": below, "arms": brief(tables), "moved": far}
    write(options, "e7", numbers, table, scatter(tables, far, below))
    write(options, "e7-curves", numbers, table, curves(tables))


def efficacy(found: Sequence[Json]) -> float:
    """Mean ES right after the edit, in percent."""
    return 100 * float(np.mean([table["right_after"]["ES"] for table in found]))


def scatter(tables: Tables, far: Moved, below: Sequence[str]) -> Figure:
    """Retained ability and retained edits against growth, and ability against how far outputs for others moved."""
    figure, axes = sheet(3, height=3.6)
    known, kept, by_moved = axes[0]
    for i, (label, found) in enumerate(tables.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = {"color": colour, "mfc": "none" if label in below else colour, "label": label}
        marker = MARKERS[i // len(COLOURS)]
        norm, recall = [growth(t)[-1] for t in found], [100 * at_end(t, "edited", "recall") for t in found]
        null_norm = [at_measurements(t, "random")[-1] for t in found]
        null_recall = [100 * at_end(t, "random", "recall") for t in found]
        point(known, norm, recall, marker, **style)
        point(known, null_norm, null_recall, "x", color=colour)
        point(kept, norm, [100 * t["final"]["ES"] for t in found], marker, **style)
        if all(far[label]):
            point(by_moved, [one["edited"][-1] for one in far[label]], recall, marker, **style)
            point(by_moved, [one["random"][-1] for one in far[label]], null_recall, "x", color=colour)
    known.set_title("recall of other facts, %")
    kept.set_title("ES of all edits at the end, %")
    by_moved.set_title("recall of other facts, %")
    by_moved.set_xlabel("outputs for other facts moved")
    for axis in (known, kept):
        axis.set_xlabel("norm, over the unedited")
    for axis in axes[0]:
        log_if_wide(axis, "x")
        axis.set_ylim(0, 103)
    handles, labels = known.get_legend_handles_labels()
    title = "hollow: below equal edit success; crosses: a random change of the same norm"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title=title)
    return figure


def point(axis: Axes, x: Sequence[float], y: Sequence[float], marker: str, **style: Any) -> None:
    """Means with their bands; of a null model the mean alone."""
    across, up = band(x), band(y)
    if marker != "x":
        width, height = across.high - across.mean, up.high - up.mean
        axis.errorbar(across.mean, up.mean, height, width, color=style["color"], lw=0.8)
    axis.plot(across.mean, up.mean, marker, ms=5, ls="", clip_on=False, **style)


if __name__ == "__main__":
    main(tyro.cli(Mitigation, description=__doc__))
