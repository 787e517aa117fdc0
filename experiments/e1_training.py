"""E1: norms under continual pre-training, full fine-tuning and LoRA, with weight decay and without.

    python -m experiments.e1_training [--model runs/small/llama]

Continual pre-training reads the learned sentences again, in rows of 64 tokens.
"""

import dataclasses

import tyro

from experiments.arms import arm
from experiments.common import Study, begin, every_seed
from experiments.drawing import brief, curves, summary_table, write


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
    write(options, "e1", {"arms": brief(tables)}, summary_table(tables), curves(tables))


if __name__ == "__main__":
    main(tyro.cli(Training, description=__doc__))
