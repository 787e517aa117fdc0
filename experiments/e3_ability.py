"""E3: what is left of ability, against the number of edits and against the norm, beside random updates.

python -m experiments.e3_ability [--model runs/small/llama] [--editors memit ft ...]
"""

import dataclasses

import tyro
from scipy.stats import spearmanr

from experiments.arms import arm
from experiments.common import NULLS, Json, Study, begin, every_seed
from experiments.drawing import (
    at_end,
    at_measurements,
    brief,
    curves,
    markdown,
    named,
    shown,
    summary_table,
    write,
)


@dataclasses.dataclass(frozen=True)
class AbilityLoss(Study):
    """Which editors."""

    editors: tuple[str, ...] = ("memit", "memit-history", "alphaedit", "rome", "r-rome", "ft", "lora")


def main(options: AbilityLoss) -> None:
    begin(options)
    arms = [arm(options, editor) for editor in options.editors]
    tables = named(arms, every_seed(options, arms))
    rows = [
        [
            f"`{label}`",
            shown([together(t) for t in found]),
            *(shown([beyond(t, null) for t in found], 1) for null in NULLS),
        ]
        for label, found in tables.items()
    ]
    head = [
        "editor",
        "Spearman, norm and recall",
        *(f"recall lost beyond a random change of the same {match}, points" for match in NULLS.values()),
    ]
    table = [*summary_table(tables), "", *markdown(head, rows)]
    write(options, "e3", {"arms": brief(tables)}, table, curves(tables))


def together(table: Json) -> float:
    """Rank correlation of norm and recall over a run's steps; NaN where recall never changes, or was not asked."""
    recall = table["edited"].get("recall", [])
    return (
        float(spearmanr(at_measurements(table), recall).statistic) if len(set(recall)) > 1 else float("nan")
    )


def beyond(table: Json, null: str) -> float:
    """How many points of recall the edits cost at the end that the null model does not."""
    return 100 * (at_end(table, null, "recall") - at_end(table, "edited", "recall"))


if __name__ == "__main__":
    main(tyro.cli(AbilityLoss, description=__doc__))
