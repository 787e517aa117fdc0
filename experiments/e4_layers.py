"""E4: edited matrices against those that stay, and the same edits over few matrices or over many.

python -m experiments.e4_layers [--model runs/small/llama]
"""

import dataclasses

import numpy as np
import tyro

from experiments.arms import FIRST, arm
from experiments.common import Arm, Json, Study, begin, every_seed
from experiments.drawing import brief, curves, markdown, shown, summary_table, write
from jaxedit.report.record import kind_of


@dataclasses.dataclass(frozen=True)
class Layers(Study):
    """Which layers of how many."""

    editor: str = "memit"
    trained: str = "full-ft"
    """Writes the down-projection of one layer, of all layers, and every parameter."""


def main(options: Layers) -> None:
    begin(options)
    spread = [arm(options, options.editor), *few_and_many(options)]
    found = every_seed(options, spread)
    labels = [options.editor, f"{options.trained}, one matrix", f"{options.trained}, all down-projections"]
    tables = dict(zip(labels, found, strict=True))
    rows = [
        [f"`{label}`", *(shown([place(t, end) for t in found]) for end in (0, -1))]
        for label, found in tables.items()
    ]
    head = ["arm", "norm over that of matrices not edited, before", "after"]
    table = [*summary_table(tables), "", *markdown(head, rows)]
    write(options, "e4", {"arms": brief(tables)}, table, curves(tables))


def few_and_many(options: Layers) -> list[Arm]:
    """Gradient descent at equal settings on one matrix, and on that of every layer."""
    return [arm(options, options.trained, layers=layers, targets=("mlp.down",)) for layers in (FIRST, None)]


def place(table: Json, end: int) -> float:
    """Mean norm of the edited matrices over the mean of the others of their kind; NaN where there are none."""
    kind = kind_of(next(iter(table["norm"])))
    others = [norm for path, norm in table["yardstick"].items() if kind_of(path) == kind]
    edited = float(np.mean([norm[end] for norm in table["norm"].values()]))
    return edited / float(np.mean(others)) if others else float("nan")


if __name__ == "__main__":
    main(tyro.cli(Layers, description=__doc__))
