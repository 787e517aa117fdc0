"""E6: the same edits on one architecture after another: C1 to C5 by their signs.

    python -m experiments.e6_families [--models runs/small/llama runs/small/gpt2 ...]

The models are those of `experiments.small_models`: the same text, size and steps. Vectors are shown where they leave
the model: in the residual stream after the last layer, and behind the last norm.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.arms import arm
from experiments.common import Json, begin, every_seed
from experiments.drawing import brief, curves, summary_table, write
from experiments.e5_activations import Vectors, rows_of, table_of
from jaxedit.models.sources import load

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen3", "gemma2")


@dataclasses.dataclass(frozen=True)
class Families(Vectors):
    """Which models, and how they are edited."""

    models: tuple[str, ...] = tuple(f"runs/small/{family}" for family in FAMILIES)
    editors: tuple[str, ...] = ("memit", "alphaedit", "ft")


def main(options: Families) -> None:
    begin(options)
    tables: dict[str, list[Json]] = {}
    vectors: list[str] = []
    for model in options.models:
        study = dataclasses.replace(options, model=model)
        arms = [arm(study, editor) for editor in options.editors]
        labels = [f"{Path(model).name} {one.label}" for one in arms]
        tables |= dict(zip(labels, every_seed(study, arms), strict=True))
        last = load(model).model.config.n_layers - 1
        for one, label in zip(arms, labels, strict=True):
            seeds = [rows_of(study, one, seed) for seed in study.seeds]
            vectors += ["", f"## `{label}`", "", *table_of(seeds, {f"layers.{last}.residual", "final"})]
    write(options, "e6", {"arms": brief(tables)}, [*summary_table(tables), *vectors], curves(tables))


if __name__ == "__main__":
    main(tyro.cli(Families, description=__doc__))
