"""E7: what holds the norm back, and whether that keeps ability: editors and transforms at equal edit success.

    python -m experiments.e7_mitigation [--model runs/small/llama]

The spectrum lock is the causal arm: with it the norm cannot grow, so that what is still lost is not lost by growth.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.arms import MITIGATIONS, NORM_AWARE, arm
from experiments.common import Json, Study, begin, every_seed
from experiments.drawing import (
    Tables,
    at_end,
    at_measurements,
    band,
    brief,
    curves,
    growth,
    log_if_wide,
    looks_of,
    markdown,
    named,
    sheet,
    shown,
    summary_table,
    write,
)
from experiments.interference import FORETOLD, Moved, foretold, moved


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
        *differences(tables),
        "",
        *markdown(FORETOLD, foretold(tables, far)),
    ]
    numbers = {"below": below, "arms": brief(tables), "moved": far}
    write(options, "e7", numbers, table, scatter(tables, far, below))
    write(options, "e7-curves", numbers, table, curves(tables))


def differences(tables: Tables) -> list[str]:
    """What every arm has more than the first one on the same facts, seed by seed; scores in points."""
    (first, base), *others = tables.items()
    measures: dict[str, Callable[[Json], float]] = {
        "ES": lambda table: 100 * table["right_after"]["ES"],
        "ES, end": lambda table: 100 * table["final"]["ES"],
        "growth": lambda table: growth(table)[-1],
        "recall": lambda table: 100 * at_end(table, "edited", "recall"),
        "perplexity": lambda table: at_end(table, "edited", "perplexity"),
        "KL": lambda table: at_end(table, "edited", "kl"),
    }
    rows = [
        [
            f"`{label}`",
            *(
                shown([of(table) - of(other) for table, other in zip(found, base, strict=True)])
                for of in measures.values()
            ),
        ]
        for label, found in others
    ]
    return markdown([f"less `{first}`", *measures], rows)


def efficacy(found: Sequence[Json]) -> float:
    """Mean ES right after the edit, in percent."""
    return 100 * float(np.mean([table["right_after"]["ES"] for table in found]))


def scatter(tables: Tables, far: Moved, below: Sequence[str]) -> Figure:
    """Retained ability and retained edits against growth, and ability against how far outputs for others moved."""
    figure, axes = sheet(3, height=3.6)
    known, kept, by_moved = axes[0]
    for label, look in looks_of(tables).items():
        found, colour, marker = tables[label], look.colour, look.marker
        style = {"color": colour, "mfc": "none" if label in below else colour, "label": label}
        norm, recall = [growth(t)[-1] for t in found], [100 * at_end(t, "edited", "recall") for t in found]
        null_norm = [at_measurements(t, "random")[-1] for t in found]
        null_recall = [100 * at_end(t, "random", "recall") for t in found]
        point(known, norm, recall, marker, **style)
        point(known, null_norm, null_recall, "x", color=colour)
        joined(known, (norm, recall), (null_norm, null_recall), colour)
        point(kept, norm, [100 * t["final"]["ES"] for t in found], marker, **style)
        if all(far[label]):
            away, null_away = ([one[model][-1] for one in far[label]] for model in ("edited", "random"))
            point(by_moved, away, recall, marker, **style)
            point(by_moved, null_away, null_recall, "x", color=colour)
            joined(by_moved, (away, recall), (null_away, null_recall), colour)
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
    seeds = len(next(iter(tables.values())))
    crosses = "crosses, joined to their arm: a random change of the same norm"
    title = f"hollow: below equal edit success; {crosses}; seeds: {seeds}"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title=title)
    return figure


def point(axis: Axes, x: Sequence[float], y: Sequence[float], marker: str, **style: Any) -> None:
    """Means with their bands; of a null model the mean alone."""
    across, up = band(x), band(y)
    if marker != "x":
        width, height = across.high - across.mean, up.high - up.mean
        axis.errorbar(across.mean, up.mean, height, width, color=style["color"], lw=0.8)
    axis.plot(across.mean, up.mean, marker, ms=5, ls="", clip_on=False, **style)


def joined(axis: Axes, one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], colour: str) -> None:
    """A faint line from an arm to its null model."""
    x, y = zip(*(np.mean(values, axis=1) for values in (one, other)), strict=True)
    axis.plot(x, y, color=colour, lw=0.5, alpha=0.5, zorder=1)


if __name__ == "__main__":
    main(tyro.cli(Mitigation, description=__doc__))
