"""Every schema reads into the same facts; every damaged file is refused with its place."""

import json

import pytest

from jaxedit.data import Fact, dump_jsonl, load_facts, rebuild_neighborhood
from jaxedit.errors import FactError

ORIGINAL = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Jean Gabin",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["Jean Gabin spoke", "He met him. Jean Gabin, a native "],
    "neighborhood_prompts": ["Michel Rocard speaks"],
    "attribute_prompts": [],
    "generation_prompts": ["Jean Gabin was born in"],
}
FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Jean Gabin is",
    "target_new": "English",
    "subject": "Jean Gabin",
    "ground_truth": "French",
    "rephrase_prompt": "Jean Gabin spoke",
    "locality_prompt": "Michel Rocard speaks",
    "locality_ground_truth": "French",
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is the product made by UniFirst?",
    "pred": "uniforms",
    "rephrase": "What does UniFirst make?",
    "alt": "aircraft",
    "answers": ["uniform", "clothes"],
    "loc": "nq question: who wrote it",
    "loc_ans": "Walter Sobchak",
}
KNOWEDIT = {
    "subject": "Epaspidoceras",
    "target_new": "Noctuidae",
    "prompt": "Which family does Epaspidoceras belong to?",
    "ground_truth": ["Aspidoceratidae"],
    "rephrase_prompt": "What family are Epaspidoceras?",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The taxon rank of Epaspidoceras is", "ground_truth": ["genus"]},
            {"prompt": "Its order is", "ground_truth": "ammonites"},
        ]
    },
    "portability": {"Reasoning": []},
}
WIKIBIO = {"text": "A passage.", "labels": "A sentence.", "concept": "john", "locality": {}}


GOOD_LINE = (
    '{"id": "a", "subject": "Lyon", "prompt": "Lyon is in", "target_new": "Spain", "target_true": "France"}'
)
GOOD_LINE_START = '{"id": "b", "subject": "x", "prompt": "x is", "target_new": "y", "target_true": "z"'


def written(tmp_path, value, name="facts.json"):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1), encoding="utf-8")
    return path


def test_original_counterfact(tmp_path):
    assert load_facts(written(tmp_path, [ORIGINAL])) == [
        Fact(
            id="7",
            subject="Jean Gabin",
            prompt="The mother tongue of Jean Gabin is",
            target_new="English",
            target_true="French",
            paraphrases=("Jean Gabin spoke", "He met him. Jean Gabin, a native"),
            neighborhood=("Michel Rocard speaks",),
            generation_prompts=("Jean Gabin was born in",),
            relation="P103",
        )
    ]


def test_flat_counterfact(tmp_path):
    other = FLAT | {"case_id": 8, "locality_ground_truth": "Dutch"}
    first, second = load_facts(str(written(tmp_path, [FLAT, other])))
    assert (first.id, first.prompt, first.target_true) == ("7", FLAT["prompt"], "French")
    assert (first.paraphrases, first.neighborhood) == (("Jean Gabin spoke",), ("Michel Rocard speaks",))
    assert first.neighborhood_answers() == ("French",)
    assert second.neighborhood_answers() == ("Dutch",)


def test_zsre(tmp_path):
    (fact,) = load_facts(written(tmp_path, [ZSRE]))
    assert (fact.id, fact.target_new, fact.target_true) == ("zsre-1", "aircraft", "uniform")
    assert fact.paraphrases == ("What does UniFirst make?",)
    assert dict(zip(fact.neighborhood, fact.neighborhood_true, strict=True)) == {
        ZSRE["loc"]: "Walter Sobchak"
    }


def test_knowedit(tmp_path):
    (fact,) = load_facts(written(tmp_path, [KNOWEDIT]))
    assert (fact.id, fact.target_new, fact.target_true) == ("knowedit-1", "Noctuidae", "Aspidoceratidae")
    assert fact.neighborhood == ("The taxon rank of Epaspidoceras is", "Its order is")
    assert fact.neighborhood_true == ("genus", "ammonites")


def test_wikibio_is_refused_with_a_reason(tmp_path):
    with pytest.raises(
        FactError, match=r"record 1: this is KnowEdit's WikiBio, which names no .* true answer"
    ):
        load_facts(written(tmp_path, [WIKIBIO]))


def test_own_jsonl_comes_back_equal(tmp_path, facts):
    dump_jsonl(facts, tmp_path / "own.jsonl")
    assert load_facts(tmp_path / "own.jsonl") == facts
    assert "東京" in (tmp_path / "own.jsonl").read_text(encoding="utf-8")
    assert load_facts(tmp_path / "own.jsonl", limit=2) == facts[:2]


def test_own_jsonl_may_leave_optional_fields_and_lines_empty(tmp_path):
    (fact,) = load_facts(written(tmp_path, f"\n{GOOD_LINE}\n\n", "own.jsonl"))
    assert fact == Fact("a", "Lyon", "Lyon is in", "Spain", "France")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", ', r"own.jsonl, line 2, column \d+: not valid JSON"),
        ("[1]", "own.jsonl, line 2: expected a JSON object"),
        ('{"id": "b", "subjct": "x"}', "line 2: unknown field 'subjct'. Did you mean 'subject'"),
        ('{"id": "b"}', "line 2: field 'subject' is missing"),
        (
            '{"id": "b", "subject": 1, "prompt": null, "target_new": "x", "target_true": "y"}',
            "line 2: field 'prompt' must be a string, found null",
        ),
        (
            GOOD_LINE_START + ', "paraphrases": "p"}',
            "line 2: field 'paraphrases' must be a list of strings, found a string",
        ),
        (
            '{"id": "a", "subject": "x", "prompt": "x is", "target_new": "y", "target_true": "z"}',
            r"fact 2 \(id 'a'\): the id is also used by .*fact 1",
        ),
    ],
)
def test_a_bad_line_of_own_jsonl_is_refused_with_file_and_line(tmp_path, line, message):
    with pytest.raises(FactError, match=message):
        load_facts(written(tmp_path, f"{GOOD_LINE}\n{line}\n", "own.jsonl"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            json.dumps([FLAT], indent=1)[:-20],
            r"facts.json, line \d+, column \d+: not valid JSON.*truncated or damaged",
        ),
        ("{}", "expected a JSON list of records, found an object"),
        ("[]", "the list of records is empty"),
        ([1], "record 1: expected a JSON object, found a number"),
        (
            [{"question": "?", "answer": "!"}],
            "no known schema has the fields answer, question.*Known schemas",
        ),
        ([FLAT, {"case_id": 9}], "record 2: field 'ground_truth' is missing; the record has case_id"),
        ([ORIGINAL | {"requested_rewrite": 3}], "record 1: field 'requested_rewrite' must be a JSON object"),
        ([ORIGINAL | {"paraphrase_prompts": "x"}], "field 'paraphrase_prompts' must be a list of strings"),
        (
            [ORIGINAL | {"requested_rewrite": ORIGINAL["requested_rewrite"] | {"prompt": "He is"}}],
            "record 1: prompt 'He is' has no {} where the subject 'Jean Gabin' belongs",
        ),
        ([ZSRE | {"answers": []}], "record 1: field 'answers' is an empty list"),
        ([KNOWEDIT | {"ground_truth": []}], "record 1: field 'ground_truth' is an empty list"),
        (
            [KNOWEDIT | {"locality": {"a": [1]}}],
            "record 1: each entry of 'locality' must be a list of objects",
        ),
        ([ZSRE, ZSRE | {"alt": ""}], "fact 2.*target_new is empty"),
        ([FLAT, FLAT], r"fact 2 \(id '7'\): the id is also used"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, value, message):
    with pytest.raises(FactError, match=f"(?s){message}"):
        load_facts(written(tmp_path, value))


def test_unusable_facts_can_be_left_out_but_damaged_files_cannot(tmp_path):
    path = written(tmp_path, [ZSRE | {"alt": ""}, ZSRE, ZSRE | {"alt": "uniform"}])
    with pytest.raises(FactError, match=r"2 fact.*skip_invalid=True"):
        load_facts(path)
    assert [fact.id for fact in load_facts(path, skip_invalid=True)] == ["zsre-2"]
    with pytest.raises(FactError, match="no usable fact"):
        load_facts(written(tmp_path, [ZSRE | {"alt": ""}]), skip_invalid=True)
    with pytest.raises(FactError, match=r"field 'src' is missing|no known schema"):
        load_facts(written(tmp_path, [{"alt": "x"}]), skip_invalid=True)


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(
        FactError, match=r"unknown set of facts.*'wrld'. Did you mean 'world'.*path of a .json"
    ):
        load_facts("wrld")
    with pytest.raises(FactError, match="cannot be read"):
        load_facts(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'[\n"caf\xe9"]')
    with pytest.raises(FactError, match=r"latin.json, line 2: byte 6 is not UTF-8"):
        load_facts(tmp_path / "latin.json")
    with pytest.raises(FactError, match="cannot be written"):
        dump_jsonl([], tmp_path / "absent" / "own.jsonl")
    with pytest.raises(FactError, match="limit is 0"):
        load_facts("world", limit=0)


def flat(number, subject, true):
    return FLAT | {
        "case_id": number,
        "subject": subject,
        "prompt": f"The mother tongue of {subject} is",
        "ground_truth": true,
        "locality_ground_truth": true,
    }


def test_rebuilt_neighborhood_shares_relation_and_true_object(tmp_path):
    records = [flat(i, f"Person {i}", "French" if i % 2 else "Dutch") for i in range(40)]
    templates = {str(i): ["P103" if i < 38 else "P17", "{} speaks"] for i in range(40)} | {"1": None}
    path = written(tmp_path, templates, "templates.json")
    before = load_facts(written(tmp_path, records))
    after = rebuild_neighborhood(before, path)
    assert after == rebuild_neighborhood(before, path)
    assert after != rebuild_neighborhood(before, path, seed=1)
    assert after[1] == before[1]  # no template
    assert after[38].neighborhood == before[38].neighborhood  # no companion in its relation
    for i in (0, 3, 20):
        assert (len(after[i].neighborhood), after[i].relation, after[i].neighborhood_true) == (10, "P103", ())
        others = {int(text.split()[1]) for text in after[i].neighborhood}
        assert len(others) == 10
        assert i not in others
        assert all(other % 2 == i % 2 and other < 38 for other in others)


def test_bad_templates_are_refused(tmp_path):
    (fact,) = load_facts(written(tmp_path, [FLAT]))
    with pytest.raises(FactError, match="expected an object, fact id ->"):
        rebuild_neighborhood([fact], written(tmp_path, [], "t.json"))
    with pytest.raises(FactError, match=r"entry '7': expected \[relation id, template with {}\] or null"):
        rebuild_neighborhood([fact], written(tmp_path, {"7": ["P1", "no place"]}, "t.json"))


def test_real_files_load(real_data):
    folder = real_data
    path = folder / "counterfact" / "counterfact-edit.json"
    facts = load_facts(path)
    assert len(facts) == 10_000
    rebuilt = rebuild_neighborhood(facts, folder / "counterfact" / "relation_templates.json")
    assert sum(len(fact.neighborhood) == 10 for fact in rebuilt) > 6_000
    zsre = load_facts(folder / "zsre" / "zsre_mend_train-1k.json", skip_invalid=True)
    knowedit = load_facts(folder / "knowedit" / "ZsRE-test-all_seq.json", skip_invalid=True)
    assert 950 < len(zsre) < 1_000
    assert 1_000 < len(knowedit) < 1_068
    assert {len(fact.neighborhood_true) for fact in knowedit} == {2}
