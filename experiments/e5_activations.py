"""E5: norms of vectors inside the model and the subspaces they lie in: by vector, layer, position and prompt set.

    python -m experiments.e5_activations [--model runs/small/llama] [--editors memit alphaedit ft]

Claims of a shift need it above the floor of two halves of the prompts in one model; beside every number stands that
of random updates of the same size.
"""

import csv
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.arms import arm
from experiments.common import Arm, Study, begin, digest, kept
from experiments.drawing import level, line, log_if_wide, looks_of, markdown, sheet, shown, write
from jaxedit.diagnostics.controls import Match
from jaxedit.pipeline import trajectory
from jaxedit.pipeline.measure import measures_at
from jaxedit.pipeline.measured import Row
from jaxedit.pipeline.watch_config import MeasureConfig
from jaxedit.report.record import layer_of

Ends = dict[tuple[str, str, str, str], float]
Along = Callable[[Ends, str, str, str], list[float]]
"""A measure of a vector, prompt set and position, the first layer first."""
VECTORS = ("key", "mlp", "attention", "residual", "final")
SHIFTED = ("norm", "mean_shift", "frechet", "chordal")
FLOORS = {"mean_shift": "mean shift", "frechet": "Fréchet", "chordal": "chordal"}
HEAD = (
    "vector",
    "prompts",
    "position",
    "norm ratio",
    "random",
    "share of the residual stream, before",
    "after",
    "overlap, chance {chance}",
    "random",
    "CKA",
    "Procrustes residual",
    *(f"{name} over its floor{of}" for name in FLOORS.values() for of in ("", ", random")),
    "beyond the floor",
)


@dataclasses.dataclass(frozen=True)
class Vectors(Study):
    """Which editors, and how many prompts."""

    editors: tuple[str, ...] = ("memit", "alphaedit", "ft")
    prompts: int = 128
    k: int = 8
    """Dimension of the subspaces."""
    null: Match = "norm"
    """What the random change beside the true one has in common with it."""
    measured_at: tuple[float, ...] = (0.25, 1.0)
    """After these shares of the edits."""


def main(options: Vectors) -> None:
    begin(options)
    found = {
        name: [rows_of(options, arm(options, name), s) for s in options.seeds] for name in options.editors
    }
    table = [line for name, seeds in found.items() for line in ["", f"## `{name}`", "", *table_of(seeds)]]
    with (options.out / "e5.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("editor", "seed", *Row._fields))
        for name, seeds in found.items():
            for seed, rows in zip(options.seeds, seeds, strict=True):
                writer.writerows((name, seed, *row) for row in rows)
    write(options, "e5", {"rows": "e5.csv"}, table, ratios(found, options.null))
    write(options, "e5-shift", {"rows": "e5.csv"}, table, shifts(found, options.null))


def rows_of(options: Vectors, one: Arm, seed: int) -> list[Row]:
    """The measures of one run."""
    asked = digest({name: getattr(options, name) for name in ("prompts", "k", "null", "measured_at")})
    found = kept(options, one, seed, f"vectors-{asked}.json", lambda path: measure(options, path, seed))
    return [Row(*row) for row in found]


def measure(options: Vectors, path: Path, seed: int) -> list[list]:
    """The measures of the run in this folder."""
    total = trajectory(path)[0].steps
    text = options.beside(options.text, "held-out.txt")
    config = MeasureConfig(
        weights=(),
        path=False,
        activations=("shift", "subspace", "similarity", "floor"),
        k=options.k,
        null=options.null,
        prompts=options.prompts,
        text=None if text is None else Path(text),
        seed=seed,
    )
    steps = sorted({max(1, round(share * total)) for share in options.measured_at})
    return [list(row) for row in measures_at(path, steps, config)]


def last(rows: list[Row], model: str) -> Ends:
    """Values at the last step by vector, prompt set, position and measure."""
    end = max(row.step for row in rows)
    chosen = [row for row in rows if row.step == end and row.model == model]
    return {(row.where, row.prompts, row.position, row.measure): row.value for row in chosen}


def table_of(seeds: list[list[Row]]) -> list[str]:
    """By vector, layer, prompt set and position, at the end: norms, shares, subspaces, with floor and null model."""
    edited, random = [last(rows, "edited") for rows in seeds], [last(rows, "random") for rows in seeds]
    lines = []
    for where, prompts, position, measure in edited[0]:
        if measure != "norm_ratio":
            continue

        def column(found: list[dict], name: str, place=(where, prompts, position)) -> list[float]:
            return [values.get((*place, name), np.nan) for values in found]

        beyond = [np.mean(column(edited, f"half_{name}_beyond")) for name in SHIFTED]
        shifted = [name for name, share in zip(SHIFTED, beyond, strict=True) if share > 0.5]
        lines.append(
            [
                where,
                prompts,
                position,
                *(shown(column(model, "norm_ratio"), 3) for model in (edited, random)),
                *(shown(column(edited, f"residual_share_{when}")) for when in ("before", "after")),
                *(shown(column(model, "overlap")) for model in (edited, random)),
                *(shown(column(edited, name)) for name in ("cka", "procrustes")),
                *(
                    shown([over_floor(ends, name, where, prompts, position) for ends in model])
                    for name in FLOORS
                    for model in (edited, random)
                ),
                ", ".join(shifted) or "none",
            ]
        )
    chance = next(value for key, value in edited[0].items() if key[-1] == "overlap_chance")
    return markdown([name.format(chance=f"{chance:.2f}") for name in HEAD], lines)


def over_floor(ends: Ends, name: str, *place: str) -> float:
    """A distance between halves of the prompts before and after, over what 95% of such halves in one model reach."""
    return ends[(*place, f"half_{name}")] / ends[(*place, f"half_{name}_floor")]  # type: ignore[index]


def ratios(found: dict[str, list[list[Row]]], null: Match) -> Figure:
    """Norm ratio at the end against depth, one panel a vector and prompt set."""
    panels = {(vector, "norm ratio"): by_layer for vector in VECTORS[:-1]}
    return by_depth(found, panels, f"a random change of the same {null}")


def shifts(found: dict[str, list[list[Row]]], null: Match) -> Figure:
    """Distances over their floors at the end against depth, a row a prompt set."""

    def measure(name: str) -> Along:
        def along(ends: Ends, vector: str, *at: str) -> list[float]:
            return [over_floor(ends, name, where, *at) for where in places(ends, vector)]

        return along

    panels = {
        (vector, f"{FLOORS[name]} over its floor"): measure(name)
        for name in ("frechet", "chordal")
        for vector in ("mlp", "residual")
    }
    floor = "1: halves of the prompts in one model"
    return by_depth(found, panels, f"a random change of the same {null}; {floor}")


def by_depth(found: dict[str, list[list[Row]]], panels: Mapping[tuple[str, str], Along], null: str) -> Figure:
    """Measures at the end against depth: a column a vector and measure, a row a prompt set."""
    sets = list(dict.fromkeys(row.prompts for row in next(iter(found.values()))[0]))
    figure, axes = sheet(len(panels), len(sets), height=1.9)
    looks, shared = looks_of(found), len({name for _, name in panels}) == 1
    for i, prompts in enumerate(sets):
        position = "subject_last" if prompts == "edited" else "last"
        for j, ((vector, name), along) in enumerate(panels.items()):
            axis = axes[i][j]
            level(axis, 1.0)
            for editor, seeds in found.items():
                for model, style in (("edited", "-"), ("random", ":")):
                    values = [along(last(rows, model), vector, prompts, position) for rows in seeds]
                    label = editor if (i, j, model) == (0, 0, "edited") else ""
                    line(axis, range(len(values[0])), values, label, looks[editor].colour, style)
            axis.set_title(f"{vector}, {prompts},\n{position.replace('_', ' ')}", fontsize=7)
            axis.set_ylabel("" if shared and j else name)
            log_if_wide(axis, "y")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.set_xlabel("layer" if i == len(sets) - 1 else "")
    figure.legend(loc="outside lower center", ncols=4, title=f"solid: edited, dotted: {null}")
    return figure


def by_layer(values: Ends, vector: str, prompts: str, position: str) -> list[float]:
    """Norm ratios of a vector, the first layer first."""
    return [values[(where, prompts, position, "norm_ratio")] for where in places(values, vector)]


def places(values: Ends, vector: str) -> list[str]:
    """Where a vector is read, the first layer first."""
    names = {where for where, *_ in values if where.endswith(f".{vector}")}
    return sorted(names, key=layer_of)


if __name__ == "__main__":
    main(tyro.cli(Vectors, description=__doc__))
