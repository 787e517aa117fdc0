"""The lookup token, the targets and the ladder of sizes."""

import pytest

from jaxedit.data import ladder, lookup_index
from jaxedit.data.tokens import leading_ids, target_ids, tokenize
from jaxedit.errors import FactError


def covered(tokenizer, text, subject):
    """The text up to and with the lookup token, and without it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    index = lookup_index(tokenizer, text, subject)
    return tokenizer.decode(ids[: index + 1]), tokenizer.decode(ids[:index])


@pytest.mark.parametrize(
    ("text", "subject", "end"),
    [
        ("Lyon is in", "Lyon", "Lyon"),
        ("The city of Lyon is in", "Lyon", "The city of Lyon"),
        ("The country of Lyon", "Lyon", "The country of Lyon"),
        ("In Lyon, the twin of Lyon is", "Lyon", "In Lyon"),
        ("Lyonnais people of Lyon say", "Lyon", "Lyonnais people of Lyon"),
        ("Lyon's mayor is", "Lyon", "Lyon"),
        ("What is (Lyon)? It is", "Lyon", "What is (Lyon"),
        ('The word "août" is', "août", 'The word "août'),
        ("Where is Москва? In", "Москва", "Where is Москва"),
        ("東京都は", "東京", "東京"),
        ("The firm AT&T, Inc. is in", "AT&T, Inc.", "The firm AT&T, Inc."),
        ("In the year 1990 it was", "1990", "In the year 1990"),
        ("It happened in mid-1990s when", "1990", "It happened in mid-1990"),
        ("Łódź (Poland) is", "Łódź (Poland)", "Łódź (Poland)"),
        ("The emoji 🎉 means", "🎉", "The emoji 🎉"),
    ],
)
def test_lookup_token_completes_the_subject(byte_level, text, subject, end):
    with_lookup, without = covered(byte_level, text, subject)
    assert with_lookup.startswith(end)
    assert not without.startswith(end)


def test_lookup_is_the_token_that_straddles_the_subjects_end(bpe):
    text = "The mother tongue"
    ids = bpe(text, add_special_tokens=False)["input_ids"]
    assert bpe.decode(ids[1:2]) == " mother"  # one token, which the subject ends inside
    assert lookup_index(bpe, text, "The mo") == 1


def test_lookup_of_a_subject_that_is_absent_is_refused(bpe):
    with pytest.raises(FactError, match="subject 'Nice' does not occur in 'Lyon is in'"):
        lookup_index(bpe, "Lyon is in", "Nice")


@pytest.mark.parametrize(
    "target", ["France", "1990", "São Paulo", "日本", "the Ivory Coast", "U.S.", '"Lyon"', "🎉"]
)
def test_target_ids_continue_any_prompt(byte_level, target):
    alone = byte_level(" " + target, add_special_tokens=False)["input_ids"]
    for prompt in ("The capital is", 'It is called the "', "In 19", "東京"):
        whole = byte_level(f"{prompt} {target}", add_special_tokens=False)["input_ids"]
        assert target_ids(byte_level, [(prompt, target)]) == {(prompt, target): alone}
        assert byte_level(prompt, add_special_tokens=False)["input_ids"] + alone == whole


def test_target_of_a_sentencepiece_tokenizer_has_one_word_start(sentencepiece):
    pair = ("The capital is", "France")
    ids = target_ids(sentencepiece, [pair])[pair]
    whole = sentencepiece("The capital is France", add_special_tokens=False)["input_ids"]
    assert sentencepiece("The capital is", add_special_tokens=False)["input_ids"] + ids == whole
    assert ids != sentencepiece(" France", add_special_tokens=False)["input_ids"]  # the trap that is avoided


def test_leading_ids_are_those_before_the_text_only(bpe, bpe_bos, sentencepiece):
    assert leading_ids(bpe) == []
    assert leading_ids(bpe_bos) == [bpe_bos.bos_token_id]
    assert leading_ids(sentencepiece) == [1]


def test_each_distinct_text_is_tokenised_once(bpe):
    asked = []

    class Counting:
        is_fast = True
        all_special_ids = ()

        def __call__(self, texts, **options):
            asked.extend(texts)
            return bpe(texts, **options)

    found = tokenize(Counting(), ["Lyon", "Paris", "Lyon"] * 3000)
    assert sorted(asked) == ["Lyon", "Paris"]
    assert found["Lyon"].ids == bpe("Lyon")["input_ids"]


def test_ladder_steps():
    steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    for size in range(1, 257):
        assert ladder(size) == min(step for step in steps if step >= size)
    assert ladder(0) == 1
    assert ladder(3, smallest=8) == 8
