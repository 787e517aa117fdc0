"""Requests say exactly what the model would see, split where the subject ends."""

import time

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from jaxedit.data import Fact, RequestShape, encode_requests, join_context, pad_requests, request_shape
from jaxedit.errors import FactError

CONTEXTS = ("", "The city of Lyon is old", "It's 1990, and nobody's there")


def row_ids(requests, b, row):
    prefix = requests.prefix[b, row][requests.prefix_mask[b, row]]
    return [*prefix.tolist(), *requests.tail[b, row][requests.tail_mask[b, row]].tolist()]


def seen_by_model(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_rows_and_target_are_the_ids_of_the_whole_text(byte_level, facts):
    requests = encode_requests(facts, byte_level, CONTEXTS, max_length=512)
    for b, fact in enumerate(facts):
        last = requests.target[b][requests.target_mask[b]].tolist()[-1]
        for c, context in enumerate(CONTEXTS):
            whole = join_context(context, fact.prompt) + " " + fact.target_new
            assert [*row_ids(requests, b, c), last] == seen_by_model(byte_level, whole)


def test_rows_decode_to_context_prompt_and_target(byte_level, facts):
    requests = encode_requests(facts, byte_level, CONTEXTS, max_length=512)
    for b, fact in enumerate(facts):
        last = requests.target[b][requests.target_mask[b]].tolist()[-1]
        for c, context in enumerate(CONTEXTS):
            text = byte_level.decode([*row_ids(requests, b, c), last], skip_special_tokens=True)
            assert text == join_context(context, fact.prompt) + " " + fact.target_new


def test_tail_starts_with_the_token_that_completes_the_subject(byte_level, facts):
    requests = encode_requests(facts, byte_level, CONTEXTS, max_length=512)
    for b, fact in enumerate(facts):
        for c, context in enumerate(CONTEXTS):
            before = requests.prefix[b, c][requests.prefix_mask[b, c]].tolist()
            lookup = requests.tail[b, c, :1].tolist()
            start = join_context(context, fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)])
            short = byte_level.decode(before, skip_special_tokens=True)
            assert byte_level.decode([*before, *lookup], skip_special_tokens=True).startswith(start)
            assert not short.startswith(start)


def test_kl_row_is_subject_is_a_cut_at_the_lookup_token(byte_level, facts):
    requests = encode_requests(facts, byte_level, CONTEXTS, max_length=512)
    for b, fact in enumerate(facts):
        ids = row_ids(requests, b, len(CONTEXTS))
        whole = seen_by_model(byte_level, f"{fact.subject} is a")
        assert ids == whole[: len(ids)]
        assert byte_level.decode(ids, skip_special_tokens=True) == fact.subject
        assert requests.tail_mask[b, -1].sum() == 1


def test_predict_at_is_the_token_before_each_target(byte_level, facts):
    requests = encode_requests(facts, byte_level, CONTEXTS, max_length=512)
    for b in range(len(facts)):
        target = requests.target[b][requests.target_mask[b]].tolist()
        for c, _ in enumerate(CONTEXTS):
            tail = requests.tail[b, c][requests.tail_mask[b, c]].tolist()
            at = requests.predict_at[b, c]
            assert at[len(target) - 1] == len(tail) - 1  # the last row token predicts the last target token
            assert [([*tail, target[-1]])[i + 1] for i in at[: len(target)]] == target
            assert all(requests.tail_mask[b, c, i] for i in at)  # padded targets point at real tokens too


def test_bos_stands_once_at_the_start_of_every_row(bpe_bos, facts):
    requests = encode_requests(facts, bpe_bos, CONTEXTS, max_length=512)
    for b in range(len(facts)):
        for row in range(len(CONTEXTS) + 1):
            ids = row_ids(requests, b, row)
            assert ids[0] == bpe_bos.bos_token_id
            assert ids.count(bpe_bos.bos_token_id) == 1
        assert bpe_bos.bos_token_id not in requests.target[b][requests.target_mask[b]]


def test_sentencepiece_prefix_and_eos_do_not_enter_the_target(sentencepiece, facts):
    requests = encode_requests(facts[:2], sentencepiece, CONTEXTS, max_length=512)
    for b, fact in enumerate(facts[:2]):
        last = requests.target[b][requests.target_mask[b]].tolist()[-1]
        for c, context in enumerate(CONTEXTS):
            whole = seen_by_model(sentencepiece, join_context(context, fact.prompt) + " " + fact.target_new)
            assert [*row_ids(requests, b, c), last] == whole[:-1]  # the model sees no EOS behind the target


def test_masks_are_right_and_left_aligned_and_padding_is_zero(bpe, facts):
    requests = encode_requests(facts, bpe, CONTEXTS, max_length=512)
    assert np.array_equal(np.sort(requests.prefix_mask, axis=-1), requests.prefix_mask)
    assert np.array_equal(np.sort(requests.tail_mask, axis=-1)[..., ::-1], requests.tail_mask)
    assert not requests.prefix[~requests.prefix_mask].any()
    assert not requests.tail[~requests.tail_mask].any()


def test_dtypes_weights_and_cases(bpe, facts):
    requests = encode_requests(facts, bpe, max_length=512)
    assert {name: array.dtype.name for name, array in requests._asdict().items()} == {
        "prefix": "int32",
        "prefix_mask": "bool",
        "tail": "int32",
        "tail_mask": "bool",
        "target": "int32",
        "target_mask": "bool",
        "predict_at": "int32",
        "weight": "float32",
        "case": "int32",
    }
    assert requests.case.tolist() == [0, 1, 2]
    assert requests.weight.tolist() == [1, 1, 1]
    assert encode_requests(facts, bpe, max_length=512, cases=(7, 5, 3)).case.tolist() == [7, 5, 3]


def test_a_given_shape_changes_only_the_padding(bpe, facts):
    small = encode_requests(facts, bpe, CONTEXTS, max_length=512)
    shape = RequestShape(128, 96, 24)
    large = encode_requests(facts, bpe, CONTEXTS, max_length=512, shape=shape)
    assert large.prefix.shape[-1:] + large.tail.shape[-1:] + large.target.shape[-1:] == shape
    for b in range(len(facts)):
        for row in range(len(CONTEXTS) + 1):
            assert row_ids(small, b, row) == row_ids(large, b, row)


def test_request_shape_is_the_shape_that_encoding_takes(bpe, facts):
    requests = encode_requests(facts, bpe, CONTEXTS, max_length=512)
    shape = request_shape(facts, bpe, CONTEXTS, max_length=512)
    assert shape == (requests.prefix.shape[-1], requests.tail.shape[-1], requests.target.shape[-1])


def test_padding_facts_are_weightless_and_have_a_token_to_attend_to(bpe, facts):
    requests = encode_requests(facts, bpe, CONTEXTS, max_length=512)
    padded = pad_requests(requests, 5)
    for before, after in zip(requests, padded, strict=True):
        assert np.array_equal(after[:3], before)
        assert after.dtype == before.dtype
    assert padded.weight.tolist() == [1, 1, 1, 0, 0]
    assert padded.case.tolist() == [0, 1, 2, -1, -1]
    assert padded.tail_mask[3:, :, 0].all()
    assert padded.target_mask[3:].sum(axis=-1).tolist() == [1, 1]
    assert not padded.predict_at[3:].any()


def test_too_many_facts_for_a_batch_are_refused(bpe, facts):
    with pytest.raises(FactError, match="3 facts do not fit a batch of 2"):
        pad_requests(encode_requests(facts, bpe, max_length=512), 2)


def test_an_over_long_prompt_is_refused_by_name_length_and_limit(bpe, facts):
    longest = encode_requests(facts[1:2], bpe, max_length=512)
    length = len(row_ids(longest, 0, 0))
    encode_requests(facts[1:2], bpe, max_length=length)
    with pytest.raises(FactError, match=rf"'middle'.* {length} tokens.*takes {length - 1}"):
        encode_requests(facts[1:2], bpe, max_length=length - 1)


def test_a_fact_that_does_not_fit_the_given_shape_is_refused_by_name(bpe, facts):
    with pytest.raises(FactError, match=r"fact 'start' needs RequestShape.*given, RequestShape"):
        encode_requests(facts, bpe, max_length=512, shape=RequestShape(1, 64, 64))


def test_what_cannot_be_encoded_is_refused(bpe, facts):
    with pytest.raises(FactError, match="no facts"):
        encode_requests([], bpe, max_length=8)
    with pytest.raises(FactError, match="first context must be ''"):
        encode_requests(facts, bpe, ("Once",), max_length=512)
    with pytest.raises(FactError, match="2 case numbers were given for 3 facts"):
        encode_requests(facts, bpe, max_length=512, cases=(1, 2))
    with pytest.raises(FactError, match=r"fact 'x'.*'Lyon' does not occur"):
        encode_requests([Fact("x", "Lyon", "Paris is in", "Spain", "France")], bpe, max_length=512)


def test_a_slow_tokenizer_is_refused(facts):
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(FactError, match="Slow is not a fast tokenizer"):
        encode_requests(facts, Slow(), max_length=512)


def test_a_subject_in_the_context_is_not_taken_for_the_prompts(bpe, facts):
    requests = encode_requests(facts[1:2], bpe, CONTEXTS, max_length=512)
    before = requests.prefix[0, 1][requests.prefix_mask[0, 1]].tolist()
    assert bpe.decode(before).startswith(CONTEXTS[1] + ". What is the twin city of")


def test_twenty_thousand_facts_encode_in_seconds(bpe, facts):
    many = [
        Fact(str(i), f"Lyon {i}", f"The twin city of Lyon {i} is", "Paris", "Beirut") for i in range(20_000)
    ]
    start = time.process_time()
    requests = encode_requests(many, bpe, max_length=64)
    assert requests.tail.shape[0] == 20_000
    assert time.process_time() - start < 20
