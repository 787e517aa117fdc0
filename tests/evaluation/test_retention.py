"""Scores by age, against picking the facts by hand."""

import math

import numpy as np
import pytest

from jaxedit.errors import ConfigError
from jaxedit.evaluation.edits import KINDS
from jaxedit.evaluation.retention import by_age

RNG = np.random.default_rng(0)
NAMES = [f"{kind}_{what}" for kind in KINDS for what in ("success", "magnitude", "accuracy", "tokens")]
AGE = np.repeat(np.arange(7)[::-1], 2)  # batches of two facts, the last update's facts last
NOW, THEN = ({name: RNG.integers(0, 2, 14).astype(float) for name in NAMES} for _ in range(2))


@pytest.mark.parametrize("groups", [1, 3, 7, 20])
def test_every_fact_is_in_the_group_of_its_age(groups: int) -> None:
    found = by_age(NOW, THEN, AGE, groups)
    assert len(found) == min(groups, 7)
    assert sum(group.facts for group in found) == 14
    assert [group.youngest for group in found][1:] == [group.oldest + 1 for group in found][:-1]
    for group in found:
        chosen = [i for i in range(14) if group.youngest <= AGE[i] <= group.oldest]
        assert group.now["ES"] == pytest.approx(np.mean([NOW["rewrite_success"][i] for i in chosen]))
        assert group.then["NS"] == pytest.approx(np.mean([THEN["neighborhood_success"][i] for i in chosen]))
        took = [i for i in chosen if THEN["rewrite_success"][i]]
        if took:
            assert group.kept == pytest.approx(sum(NOW["rewrite_success"][i] for i in took) / len(took))
        else:
            assert math.isnan(group.kept)


def test_facts_not_scored_when_written_have_scores_now() -> None:
    (group,) = by_age(NOW, {}, AGE, 1)
    assert group.then == {}
    assert math.isnan(group.kept)
    assert group.now == by_age(NOW, THEN, AGE, 1)[0].now


def test_no_facts_no_groups() -> None:
    assert by_age({name: x[:0] for name, x in NOW.items()}, {}, AGE[:0], 5) == []
    with pytest.raises(ConfigError, match="groups"):
        by_age(NOW, THEN, AGE, 0)
