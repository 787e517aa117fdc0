"""E1: norms under continual pre-training, full fine-tuning and LoRA, with weight decay and without.

    python -m experiments.e1_training [--model runs/small/llama]

Continual pre-training reads the learned sentences again, in an order drawn by the seed, in rows of 64 tokens.
"""

import dataclasses

import tyro

from experiments.arms import arm
from experiments.common import Json, Study, begin, every_seed
from experiments.drawing import brief, curves, growth, markdown, shown, summary_table, write
from jaxedit.report.record import projection_of


@dataclasses.dataclass(frozen=True)
class Training(Study):
    """Rates of decay."""

    editors: tuple[str, ...] = ("pretrain", "full-ft", "lora-sequence")
    decays: tuple[float, ...] = (0.0, 0.1)
    """Decoupled weight decay."""


def main(options: Training) -> None:
    begin(options)
    chosen = [(editor, decay) for editor in options.editors for decay in options.decays]
    arms = [arm(options, editor, weight_decay=decay) for editor, decay in chosen]
    labels = [f"{editor}, decay {decay:g}" for editor, decay in chosen]
    tables = dict(zip(labels, every_seed(options, arms), strict=True))
    kinds = list(dict.fromkeys(projection_of(path) for found in tables.values() for path in found[0]["norm"]))
    rows = [
        [f"`{label}`", *(shown([growth_of(table, kind) for table in found], 3) for kind in kinds)]
        for label, found in tables.items()
    ]
    table = [*summary_table(tables), "", *markdown(["growth of", *kinds], rows)]
    write(options, "e1", {"arms": brief(tables)}, table, curves(tables))


def growth_of(table: Json, kind: str) -> float:
    """The norm of the matrices of one kind together, at the end, over that before; NaN where none is edited."""
    norms = {path: norm for path, norm in table["norm"].items() if projection_of(path) == kind}
    return float(growth({"norm": norms})[-1]) if norms else float("nan")


if __name__ == "__main__":
    main(tyro.cli(Training, description=__doc__))
