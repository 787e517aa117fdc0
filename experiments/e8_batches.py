"""E8: the same facts one at a time, in batches, and all at once.

python -m experiments.e8_batches [--model runs/small/llama]
"""

import dataclasses

import tyro

from experiments.arms import arm
from experiments.common import Study, begin, every_seed
from experiments.drawing import brief, curves, named, summary_table, write


@dataclasses.dataclass(frozen=True)
class Batches(Study):
    """Which sizes."""

    editor: str = "memit"
    sizes: tuple[int, ...] = (1, 10, 100, 0)
    """Facts written by one update; 0 writes all at once."""


def main(options: Batches) -> None:
    begin(options)
    arms = [arm(options, options.editor, batch=size) for size in options.sizes]
    found = named(arms, every_seed(options, arms))
    tables = {label.replace("batch 0", "all at once"): table for label, table in found.items()}
    write(options, "e8", {"arms": brief(tables)}, summary_table(tables), curves(tables))


if __name__ == "__main__":
    main(tyro.cli(Batches, description=__doc__))
