"""E6: the same edits on one architecture after another: C1 to C5 by their signs.

    python -m experiments.e6_families [--models runs/small/llama runs/small/gpt2 ...]

The models are those of `experiments.small_models`: the same text, size and steps.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.arms import arm
from experiments.common import Json, Study, begin, every_seed
from experiments.drawing import brief, curves, summary_table, write

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen3", "gemma2")


@dataclasses.dataclass(frozen=True)
class Families(Study):
    """Which models, and how they are edited."""

    models: tuple[str, ...] = tuple(f"runs/small/{family}" for family in FAMILIES)
    editors: tuple[str, ...] = ("memit", "alphaedit", "ft")


def main(options: Families) -> None:
    begin(options)
    tables: dict[str, list[Json]] = {}
    for model in options.models:
        study = dataclasses.replace(options, model=model)
        found = every_seed(study, [arm(study, editor) for editor in options.editors])
        tables |= {
            f"{Path(model).name} {name}": one for name, one in zip(options.editors, found, strict=True)
        }
    write(options, "e6", {"arms": brief(tables)}, summary_table(tables), curves(tables))


if __name__ == "__main__":
    main(tyro.cli(Families, description=__doc__))
