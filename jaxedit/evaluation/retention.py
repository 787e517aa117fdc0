"""What is left of earlier edits: scores of facts by how many updates ago they were written."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxedit.errors import ConfigError
from jaxedit.evaluation.edits import summarise


class AgeGroup(NamedTuple):
    """Facts of neighbouring ages; an age of 0 is that of the last update's facts."""

    youngest: int
    oldest: int
    facts: int
    now: dict[str, float]  # ES, PS, NS, S, ... as `summarise` names them
    then: dict[str, float]  # the same right after the facts were written; empty where that was not scored
    kept: float  # of the facts that took right after, the share that still do; NaN without any


def by_age(
    now: dict[str, Float[np.ndarray, "E"]],
    then: dict[str, Float[np.ndarray, "E"]],
    age: Int[np.ndarray, "E"],
    groups: int,
) -> list[AgeGroup]:
    """Scores of facts in groups of neighbouring ages, the youngest first; each has as many different ages.

    `now` and `then` are scores of the same facts as `jaxedit.evaluation.edits.score` gives them, on this model and
    right after each was written; `then` may be empty. Raises ConfigError where `groups` is below 1.
    """
    if groups < 1:
        raise ConfigError(f"groups is {groups}; it must be at least 1")
    age = np.asarray(age)
    ages = np.unique(age)
    result = []
    for part in np.array_split(ages, min(groups, len(ages))) if len(ages) else []:
        chosen = np.isin(age, part)
        new, old = ({name: np.asarray(x)[chosen] for name, x in scores.items()} for scores in (now, then))
        took = old["rewrite_success"] == 1 if old else np.zeros(chosen.sum(), bool)
        kept = float(new["rewrite_success"][took].mean()) if took.any() else float("nan")
        before = summarise(old) if old else {}
        youngest, oldest = int(part[0]), int(part[-1])
        result.append(AgeGroup(youngest, oldest, int(chosen.sum()), summarise(new), before, kept))
    return result
