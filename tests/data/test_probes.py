"""Probes pack two targets behind one prompt; each branch reads as if it stood alone."""

import numpy as np
import pytest

from jaxedit.data import ProbeShape, encode_probes, pad_probes, probe_shape
from jaxedit.errors import FactError
from jaxedit.types import NEIGHBORHOOD, PARAPHRASE, REWRITE


def questions(fact):
    own = [(REWRITE, fact.prompt), *((PARAPHRASE, text) for text in fact.paraphrases)]
    rows = [(kind, text, fact.target_true) for kind, text in own]
    answers = fact.neighborhood_true or [fact.target_true] * len(fact.neighborhood)
    return rows + [(NEIGHBORHOOD, text, true) for text, true in zip(fact.neighborhood, answers, strict=True)]


def test_each_branch_is_what_the_model_sees_for_its_target(byte_level, facts):
    probes = encode_probes(facts, byte_level, max_length=512)
    for b, fact in enumerate(facts):
        for n, (kind, text, true) in enumerate(questions(fact)):
            assert probes.kind[b, n] == kind
            for side, target in enumerate((fact.target_new, true)):
                seen = np.isin(probes.branch[b, n], (0, side + 1))
                ids = probes.target[b, n, side][probes.target_mask[b, n, side]].tolist()
                whole = byte_level(f"{text} {target}")["input_ids"]
                assert [*probes.tokens[b, n][seen].tolist(), ids[-1]] == whole
                assert probes.position[b, n][seen].tolist() == list(range(len(whole) - 1))
                assert whole[-len(ids) :] == ids


def test_predict_at_is_the_position_before_each_target_token(byte_level, facts):
    probes = encode_probes(facts, byte_level, max_length=512)
    for b, fact in enumerate(facts):
        for n, (_, text, _) in enumerate(questions(fact)):
            prompt = byte_level(text)["input_ids"]
            for side in range(2):
                ids = probes.target[b, n, side][probes.target_mask[b, n, side]].tolist()
                at = probes.predict_at[b, n, side, : len(ids)]
                assert probes.position[b, n][at].tolist() == [len(prompt) - 1 + t for t in range(len(ids))]
                assert probes.branch[b, n][at].tolist() == [0] + [side + 1] * (len(ids) - 1)
                assert probes.tokens[b, n][at].tolist() == [prompt[-1], *ids[:-1]]


def test_padding_rows_keep_one_token_and_no_targets(bpe, facts):
    probes = encode_probes(facts, bpe, max_length=512)
    padding = probes.kind == -1
    assert padding.sum() == 3 * probes.kind.shape[1] - sum(len(questions(fact)) for fact in facts)
    assert (probes.branch[padding][:, 0] == 0).all()
    assert (probes.branch[padding][:, 1:] == -1).all()
    assert not probes.target_mask[padding].any()
    padded = pad_probes(probes, 5)
    assert np.array_equal(padded.tokens[:3], probes.tokens)
    assert (padded.kind[3:] == -1).all()
    assert (padded.branch[3:, :, 0] == 0).all()
    assert (padded.branch[3:, :, 1:] == -1).all()
    with pytest.raises(FactError, match="3 facts do not fit a batch of 1"):
        pad_probes(probes, 1)


def test_shapes(bpe, facts):
    probes = encode_probes(facts, bpe, max_length=512)
    shape = probe_shape(facts, bpe, max_length=512)
    assert shape == (probes.kind.shape[1], probes.tokens.shape[-1], probes.target.shape[-1])
    assert {array.dtype.name for array in probes} == {"int32", "bool"}
    larger = encode_probes(facts, bpe, max_length=512, shape=ProbeShape(9, 128, 32))
    assert larger.tokens.shape == (3, 9, 128)
    assert np.array_equal(larger.tokens[:, : shape.N, : shape.L], probes.tokens)
    with pytest.raises(FactError, match="fact 'start' needs ProbeShape"):
        encode_probes(facts, bpe, max_length=512, shape=ProbeShape(1, 128, 32))


def test_over_long_prompts_are_refused_by_name(bpe, facts):
    with pytest.raises(FactError, match=r"fact 'start': prompt .Danielle.*takes 4"):
        encode_probes(facts, bpe, max_length=4)
    with pytest.raises(FactError, match="no facts"):
        encode_probes([], bpe, max_length=4)
