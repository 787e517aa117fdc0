"""Prompts for causal tracing say where the subject is, and what each token is to it."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxedit.data import load_facts
from jaxedit.data.known import KnownFact, as_known, load_known
from jaxedit.data.trace import encode_trace, position_kinds
from jaxedit.errors import FactError
from jaxedit.types import FIRST_AFTER, FIRST_SUBJECT, FURTHER, LAST, LAST_SUBJECT, MIDDLE_SUBJECT

RECORD = {
    "known_id": 0,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
FACTS = [
    KnownFact("start", "Danielle Darrieux", "Danielle Darrieux's mother tongue is", "French"),
    KnownFact("middle", "Lyon", "What is the twin city of Lyon? It is", "Beirut"),
    KnownFact("end", "東京", "The country of 東京", "日本"),
    KnownFact("again", "Paris", "Parisian life goes on in the city of Paris in", "France"),
]


def test_prompts_are_whole_and_split_at_the_subject(byte_level) -> None:
    prompts = encode_trace(FACTS, byte_level, max_length=200)
    for i, fact in enumerate(FACTS):
        prefix = prompts.prefix[i][prompts.prefix_mask[i]].tolist()
        tail = prompts.tail[i][prompts.tail_mask[i]].tolist()
        assert prefix + tail == byte_level(fact.prompt)["input_ids"]
        kinds = prompts.kind[i][prompts.tail_mask[i]]
        count = int((kinds <= LAST_SUBJECT).sum())
        subject = byte_level.decode(tail[:count], skip_special_tokens=True)
        assert fact.subject in subject
        assert len(subject.strip()) <= len(fact.subject) + 2, "not more than the subject's own tokens"
        assert kinds.tolist() == position_kinds(count, len(tail))
        assert (prompts.kind[i][~prompts.tail_mask[i]] == -1).all()
        whole = byte_level(f"{fact.prompt} {fact.object}")["input_ids"]
        assert prompts.target[i] == whole[len(prefix) + len(tail)]
    assert prompts.case.tolist() == [0, 1, 2, 3]


def test_a_tokenizer_with_bos_keeps_it_in_the_prefix(bpe_bos) -> None:
    prompts = encode_trace(FACTS[:1], bpe_bos, max_length=200)
    assert prompts.prefix[0][prompts.prefix_mask[0]].tolist() == [0]


def test_every_token_has_one_kind() -> None:
    assert position_kinds(1, 1) == [LAST_SUBJECT]
    assert position_kinds(1, 2) == [LAST_SUBJECT, LAST]
    assert position_kinds(2, 4) == [FIRST_SUBJECT, LAST_SUBJECT, FIRST_AFTER, LAST]
    assert position_kinds(4, 8) == [
        FIRST_SUBJECT, MIDDLE_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_AFTER, FURTHER, FURTHER, LAST,
    ]  # fmt: skip
    for subject in range(1, 6):
        for length in range(subject, 9):
            assert len(position_kinds(subject, length)) == length


def test_what_cannot_be_traced_is_refused(bpe) -> None:
    with pytest.raises(FactError, match="no facts to trace"):
        encode_trace([], bpe, max_length=10)
    with pytest.raises(FactError, match=r"fact 'start': the prompt is \d+ tokens long, the model takes 3"):
        encode_trace(FACTS, bpe, max_length=3)
    with pytest.raises(FactError, match="fact 'a': subject 'Rome' does not occur"):
        encode_trace([KnownFact("a", "Rome", "Lyon is in", "France")], bpe, max_length=10)


def test_known_facts_are_read_in_their_schema(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps([RECORD, RECORD | {"known_id": 1}]))
    expected = KnownFact("0", "Vinson Massif", RECORD["prompt"], "Antarctica")
    assert load_known(path)[0] == expected
    assert load_known(path, limit=1) == [expected]
    world = load_facts("world", limit=3)
    known = load_known("world", limit=3)
    assert known == [as_known(fact) for fact in world]
    assert [fact.object for fact in known] == [fact.target_true for fact in world]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "Vinson Massive"}, "record 1: subject 'Vinson Massive' does not occur"),
        ({"attribute": " "}, "record 1: object must not be empty"),
        ({"prompt": 3}, "record 1: subject"),
        ({"attribute": None}, "record 1: field 'attribute' must be a string"),
    ],
)
def test_damaged_known_facts_are_refused_with_their_place(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps([RECORD | change]))
    with pytest.raises(FactError, match=message):
        load_known(path)


def test_all_known_facts_of_the_paper_can_be_traced(real_data: Path, byte_level) -> None:
    facts = load_known(real_data / "known_facts" / "known_1000.json")
    assert len(facts) == 1209
    prompts = encode_trace(facts, byte_level, max_length=1024)
    assert ((prompts.kind == LAST_SUBJECT).sum(axis=1) == 1).all()
    last = np.take_along_axis(prompts.kind, prompts.tail_mask.sum(axis=1, keepdims=True) - 1, axis=1)
    assert set(last.ravel().tolist()) <= {LAST, LAST_SUBJECT}
