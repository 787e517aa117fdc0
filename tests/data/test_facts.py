"""Unusable facts are refused with what is wrong, where, and what to do."""

from dataclasses import replace

import pytest

from jaxedit.data import Fact, validate, validate_all
from jaxedit.errors import FactError

GOOD = Fact("f1", "Lyon", "The city of Lyon is in", "Spain", "France", neighborhood=("Nice is in",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"subject": " "}, "subject is empty"),
        ({"subject": "lyon"}, "subject 'lyon' does not occur in prompt 'The city of Lyon is in'"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "Lyon is in "}, "prompt 'Lyon is in ' has white space at an end"),
        ({"target_new": ""}, "target_new is empty"),
        ({"target_true": "  "}, "target_true is empty"),
        ({"target_new": "France"}, "target_new and target_true are both 'France'"),
        ({"target_new": " Spain"}, "target_new ' Spain' has white space"),
        ({"paraphrases": ("Lyon is in", "")}, r"paraphrases\[1\] is empty"),
        ({"neighborhood_true": ("a", "b")}, "2 answers for 1 neighborhood prompts"),
    ],
)
def test_a_bad_fact_is_refused_with_place_and_reason(change, message):
    with pytest.raises(FactError, match=rf"here, line 3: fact .*{message}"):
        validate(replace(GOOD, **change), "here, line 3")


def test_targets_that_differ_only_by_white_space_are_equal():
    with pytest.raises(FactError, match="there is nothing to edit"):
        validate(replace(GOOD, target_new="France "), "here")


def test_a_good_fact_passes_and_knows_its_neighbours_answers():
    validate(GOOD, "here")
    validate_all([GOOD, replace(GOOD, id="f2")], "here")
    assert GOOD.neighborhood_answers() == ("France",)
    assert replace(GOOD, neighborhood_true=("Italy",)).neighborhood_answers() == ("Italy",)


def test_doubled_ids_name_both_places():
    with pytest.raises(FactError, match=r"set, fact 3 \(id 'f1'\): the id is also used by set, fact 1"):
        validate_all([GOOD, replace(GOOD, id="f2"), GOOD], "set")


@pytest.mark.parametrize("unusable", [False, True])
def test_leaving_out_is_named_only_where_it_helps(unusable):
    """Facts of a doubled id are not left out."""
    bad = [replace(GOOD, id="f2", subject="Nice")] if unusable else []
    with pytest.raises(FactError) as caught:
        validate_all([GOOD, GOOD, *bad], "set")
    assert ("--skip-invalid" in str(caught.value)) == unusable


def test_many_problems_are_reported_at_once_and_counted():
    bad = [replace(GOOD, id=f"f{i}", subject="Nice") for i in range(25)]
    with pytest.raises(FactError) as caught:
        validate_all([GOOD, *bad], "set")
    message = str(caught.value)
    assert "24 fact(s)" in message or "25 fact(s)" in message
    assert message.count("does not occur") == 10
    assert "and 15 more" in message
