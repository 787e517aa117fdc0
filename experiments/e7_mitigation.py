"""E7: what holds the norm back, and whether that keeps ability: editors and transforms at equal edit success.

    python -m experiments.e7_mitigation [--model runs/small/llama]

The spectrum lock is the causal arm: with it the norm cannot grow, so that what is still lost is not lost by growth.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tyro
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
    named,
    sheet,
    summary_table,
    write,
)

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
    below = [label for label, found in tables.items() if efficacy(found) < options.least]
    table = [
        *summary_table(tables),
        "",
        f"Below an ES of {options.least:g} right after the edit: {below or 'none'}.",
    ]
    numbers = {"below": below, "arms": brief(tables)}
    write(options, "e7", numbers, table, scatter(tables, below))
    write(options, "e7-curves", numbers, table, curves(tables))


def efficacy(found: Sequence[Json]) -> float:
    """Mean ES right after the edit, in percent."""
    return 100 * float(np.mean([table["right_after"]["ES"] for table in found]))


def scatter(tables: Tables, below: Sequence[str]) -> Figure:
    """Growth of the norm against retained ability and against retained edits, one point an arm."""
    figure, axes = sheet(2, height=3.6)
    for axis, values, title in zip(
        axes[0],
        (lambda t: at_end(t, "edited", "recall"), lambda t: t["final"]["ES"]),
        ("facts not edited that are recalled at the end, %", "ES of all edits at the end, %"),
        strict=True,
    ):
        for i, (label, found) in enumerate(tables.items()):
            norm, kept = band([growth(t)[-1] for t in found]), band([100 * values(t) for t in found])
            colour, face = COLOURS[i % len(COLOURS)], "none" if label in below else COLOURS[i % len(COLOURS)]
            marker = MARKERS[i // len(COLOURS)]
            axis.errorbar(
                norm.mean, kept.mean, kept.high - kept.mean, norm.high - norm.mean, color=colour, lw=0.8
            )
            axis.plot(norm.mean, kept.mean, marker, color=colour, mfc=face, ms=6, label=label, clip_on=False)
            if axis is axes[0][0]:
                null = [
                    [at_measurements(t, "random")[-1], 100 * at_end(t, "random", "recall")] for t in found
                ]
                axis.plot(*np.mean(null, axis=0), "x", color=colour, ms=5)
        axis.set_title(title)
        axis.set_xlabel("norm of the edited matrices, over the unedited")
        log_if_wide(axis, "x")
        axis.set_ylim(0, 103)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        title="crosses: a random change of the same norm",
    )
    return figure


if __name__ == "__main__":
    main(tyro.cli(Mitigation, description=__doc__))
