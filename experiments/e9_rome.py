"""E9: ROME against r-ROME, which poses its constraint at the key that is written.

python -m experiments.e9_rome [--model runs/small/llama]
"""

import dataclasses

import tyro

from experiments.arms import arm
from experiments.common import Study, begin, every_seed
from experiments.drawing import brief, curves, named, summary_table, write


@dataclasses.dataclass(frozen=True)
class Romes(Study):
    """The two."""

    editors: tuple[str, ...] = ("rome", "r-rome")


def main(options: Romes) -> None:
    begin(options)
    arms = [arm(options, editor) for editor in options.editors]
    tables = named(arms, every_seed(options, arms))
    write(options, "e9", {"arms": brief(tables)}, summary_table(tables), curves(tables))


if __name__ == "__main__":
    main(tyro.cli(Romes, description=__doc__))
