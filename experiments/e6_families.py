"""E6: the same edits on one architecture after another: what comes out as on the others, and what does not.

    python -m experiments.e6_families [--models runs/small/llama runs/small/gpt2 ...]

The models are those of `experiments.small_models`: the same text, size and steps.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.arms import arm
from experiments.common import begin, every_seed
from experiments.drawing import (
    COLOURS,
    Tables,
    brief,
    growth,
    level,
    line,
    log_if_wide,
    markdown,
    sheet,
    shown,
    summary_table,
    write,
)
from experiments.e5_activations import Ends, Vectors, by_layer, last, rows_of
from experiments.interference import FORETOLD, Moved, foretold, moved
from jaxedit.report.record import layer_of

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen3", "gemma2")
SHOWN = ("edited", "random")
ON_EDITS, ON_TEXT = ("edited", "subject_last"), ("text", "last")
NORMS = {
    "edited MLP, edits": ("mlp", "written", ON_EDITS),
    "last MLP, edits": ("mlp", "last", ON_EDITS),
    "last MLP, text": ("mlp", "last", ON_TEXT),
    "residual at the end, edits": ("residual", "last", ON_EDITS),
    "residual at the end, text": ("residual", "last", ON_TEXT),
}
"""Vectors whose norms are shown: which, of which layer, and on which prompts."""


@dataclasses.dataclass(frozen=True)
class Families(Vectors):
    """Which models, and how they are edited."""

    models: tuple[str, ...] = tuple(f"runs/small/{family}" for family in FAMILIES)
    editors: tuple[str, ...] = ("memit", "alphaedit", "ft")


@dataclasses.dataclass(frozen=True)
class Family:
    """What was measured of one architecture, by editor and seed."""

    tables: Tables
    far: Moved
    vectors: Mapping[str, Mapping[str, Sequence[Ends]]]  # by editor and by model


def main(options: Families) -> None:
    begin(options)
    families = {Path(model).name: measure(options, model) for model in options.models}
    tables = {
        f"{name} {editor}": found for name, one in families.items() for editor, found in one.tables.items()
    }
    head = ["arm", *(f"{name} (random)" for name in NORMS)]
    norms = [
        [f"`{name} {editor}`", *norm_row(one, editor)]
        for name, one in families.items()
        for editor in options.editors
    ]
    size = [[f"`{name}`", *row] for name, one in families.items() for row in foretold(one.tables, one.far)]
    table = [
        *summary_table(tables),
        "",
        *markdown(head, norms),
        "",
        *markdown(["family", *FORETOLD], size),
    ]
    numbers = {"arms": brief(tables), "moved": {name: one.far for name, one in families.items()}}
    write(options, "e6", numbers, table, side_by_side(families, options.editors))


def measure(options: Families, model: str) -> Family:
    """All editors on one model."""
    study = dataclasses.replace(options, model=model)
    arms = {editor: arm(study, editor) for editor in options.editors}
    tables = dict(zip(arms, every_seed(study, [*arms.values()]), strict=True))
    far = {editor: [moved(study, one, seed) for seed in study.seeds] for editor, one in arms.items()}
    rows = {editor: [rows_of(study, one, seed) for seed in study.seeds] for editor, one in arms.items()}
    vectors = {
        editor: {model: [last(one, model) for one in found] for model in SHOWN}
        for editor, found in rows.items()
    }
    return Family(tables, far, vectors)


def norm_row(family: Family, editor: str) -> list[str]:
    """Norms of vectors over those before, after the last edit, and those of a random change in brackets."""
    written = layer_of(next(iter(family.tables[editor][0]["norm"])))

    def ratio(model: str, vector: str, which: str, prompts: tuple[str, str]) -> str:
        values = [by_layer(ends, vector, *prompts) for ends in family.vectors[editor][model]]
        return shown([found[written if which == "written" else -1] for found in values])

    return [f"{ratio('edited', *of)} ({ratio('random', *of)})" for of in NORMS.values()]


def side_by_side(families: Mapping[str, Family], editors: Sequence[str]) -> Figure:
    """A row an editor: norm and recall against edits, recall against outputs moved, norms of vectors by layer."""
    figure, axes = sheet(4, len(editors), height=1.9)
    for panels, editor in zip(axes, editors, strict=True):
        for (name, family), colour in zip(families.items(), COLOURS, strict=False):
            label = name if editor == editors[0] else ""
            found = family.tables[editor]
            facts, far = found[0]["facts"], family.far[editor]
            line(panels[0], found[0]["edits"], [growth(table) for table in found], label, colour)
            for model, style in zip(SHOWN, ("-", ":"), strict=True):
                recall = [100 * np.asarray(table[model]["recall"]) for table in found]
                line(panels[1], facts, recall, "", colour, style)
                away = np.mean([one[model] for one in far], axis=0)
                panels[2].plot(away, np.mean(recall, axis=0), color=colour, ls=style, marker=".", ms=3)
                mlps = [by_layer(ends, "mlp", *ON_EDITS) for ends in family.vectors[editor][model]]
                line(panels[3], range(len(mlps[0])), mlps, "", colour, style)
        panels[0].set_ylabel(editor)
        level(panels[0], 1.0)
        level(panels[3], 1.0)
        for axis in (panels[0], panels[3]):
            log_if_wide(axis, "y")
        for axis in (panels[1], panels[2]):
            axis.set_ylim(0, 103)
    known = "recall of other facts, %"
    titles = ("norm, over the unedited", known, known, "norms of MLPs, on edits")
    below = ("facts edited", "facts edited", "outputs for other facts moved", "layer")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis, x in zip(axes[-1], below, strict=True):
        axis.set_xlabel(x)
    figure.legend(
        loc="outside lower center",
        ncols=len(families),
        title="solid: edited, dotted: a random change of the same norm",
    )
    return figure


if __name__ == "__main__":
    main(tyro.cli(Families, description=__doc__))
