"""Scores against a plain recomputation with transformers in float64, one prompt and one target at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import Fact, encode_probes
from jaxedit.evaluation.edits import (
    Readings,
    agreement,
    answer_all,
    probe_scores,
    read,
    room_of,
    score,
    score_all,
    summarise,
)
from jaxedit.types import NEIGHBORHOOD, PARAPHRASE, REWRITE, Probes
from tests.cases import Case

FACTS = (
    Fact(
        id="long",
        subject="Eiffel Tower",
        prompt="The Eiffel Tower is located in the city of",
        target_new="North Macedonia",
        target_true="Danielle Darrieux",
        paraphrases=("Where is the Eiffel Tower? It is in", "The famous tower is in the town of"),
        neighborhood=(
            "Lyon lies in the country of",
            "Paris is the capital of",
            "The weather in the north is",
        ),
        neighborhood_true=("Italy", "Rome", "fine"),
    ),
    Fact(
        id="short",
        subject="Paris",
        prompt="Paris is the capital of",
        target_new="Rome",
        target_true="Italy",
        paraphrases=("The country of Paris is",),
    ),
    Fact(id="bare", subject="Lyon", prompt="Lyon is a town in", target_new="jazz", target_true="the north"),
)
KINDS = ("rewrite", "paraphrase", "neighborhood")


def questions(fact: Fact) -> list[tuple[str, str, str]]:
    """Kind, prompt, true answer."""
    around = zip(fact.neighborhood, fact.neighborhood_answers(), strict=True)
    return [
        ("rewrite", fact.prompt, fact.target_true),
        *(("paraphrase", text, fact.target_true) for text in fact.paraphrases),
        *(("neighborhood", text, true) for text, true in around),
    ]


def reading(case: Case, prompt: str, target: str) -> tuple[float, float]:
    """Mean NLL of the target's tokens after the prompt, and the share of them that are the arg-max."""
    ids = case.checkpoint.tokenizer(prompt)["input_ids"]
    answer = case.checkpoint.tokenizer(" " + target, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_p = case.oracle(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
    of_tokens = [log_p[len(ids) + i - 1] for i in range(len(answer))]
    nll = np.mean([-row[token].item() for row, token in zip(of_tokens, answer, strict=True)])
    hits = [int(row.argmax()) == token for row, token in zip(of_tokens, answer, strict=True)]
    return float(nll), float(np.mean(hits))


def plain_scores(case: Case, fact: Fact) -> dict[str, float]:
    found: dict[str, list[float]] = {
        f"{k}_{w}": [] for k in KINDS for w in ("success", "magnitude", "accuracy", "tokens")
    }
    knows = 0.0
    for kind, prompt, true_answer in questions(fact):
        (new, new_hit), (true, true_hit) = (
            reading(case, prompt, fact.target_new),
            reading(case, prompt, true_answer),
        )
        keep = kind == "neighborhood"
        found[f"{kind}_success"].append(float(true < new if keep else new < true))
        gain = np.exp(-new) - np.exp(-true)
        found[f"{kind}_magnitude"].append(-gain if keep else gain)
        found[f"{kind}_accuracy"].append(float((true_hit if keep else new_hit) == 1.0))
        found[f"{kind}_tokens"].append(true_hit if keep else new_hit)
        if kind == "rewrite":
            knows = float(true_hit == 1.0)
    return {name: float(np.mean(values)) if values else np.nan for name, values in found.items()} | {
        "knows": knows
    }


def probes_of(case: Case, facts: tuple[Fact, ...] = FACTS) -> Probes:
    return encode_probes(facts, case.checkpoint.tokenizer, max_length=64)


def test_packed_rows_read_what_separate_full_forwards_read(case: Case) -> None:
    assert_read_as_apart(case)


def test_so_they_do_where_a_window_is_shorter_than_the_row(case_of: Callable[[str], Case]) -> None:
    """The second target stands behind the first in the row, and right behind the prompt in position."""
    case = case_of("mistral")
    lengths = (np.asarray(probes_of(case).branch) >= 0).sum(axis=-1)
    assert case.model.config.window is not None
    assert lengths.max() > case.model.config.window
    assert_read_as_apart(case)


def assert_read_as_apart(case: Case) -> None:
    probes = probes_of(case)
    readings = jax.jit(read, static_argnums=0)(case.model, case.checkpoint.params, probes)
    assert probes.target_mask.sum(axis=-1).min(where=probes.kind[..., None] >= 0, initial=9) >= 1
    assert (probes.branch > 0).any(), "no target has two tokens"
    for i, fact in enumerate(FACTS):
        for j, (_, prompt, true) in enumerate(questions(fact)):
            for side, target in enumerate((fact.target_new, true)):
                nll, hit = reading(case, prompt, target)
                assert float(readings.nll[i, j, side]) == pytest.approx(nll, rel=1e-5)
                assert bool(readings.exact[i, j, side]) == (hit == 1.0)
                assert float(readings.tokens[i, j, side]) == pytest.approx(hit, rel=1e-6)


def test_scores_are_those_of_a_plain_recomputation(case: Case) -> None:
    found = score_all(case.model, case.checkpoint.params, probes_of(case), batch=2)
    for i, fact in enumerate(FACTS):
        for name, expected in plain_scores(case, fact).items():
            assert float(found[name][i]) == pytest.approx(expected, rel=1e-4, abs=1e-9, nan_ok=True), name


def test_agreement_is_of_the_likeliest_tokens_in_place_of_the_true_answers(case: Case) -> None:
    probes = probes_of(case)
    _, said = answer_all(case.model, case.checkpoint.params, probes, batch=2)
    tokenizer, rows = case.checkpoint.tokenizer, []
    for i, fact in enumerate(FACTS):
        for j, (kind, prompt, true) in enumerate(questions(fact)):
            ids = tokenizer(prompt)["input_ids"]
            answer = tokenizer(" " + true, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = case.oracle(torch.tensor([ids + answer])).logits[0]
            likeliest = logits[len(ids) - 1 : -1].argmax(-1).numpy()
            np.testing.assert_array_equal(said[i, j, : len(answer)], likeliest)
            rows += [(i, j, len(answer))] if kind == "neighborhood" else []
    assert {i for i, _, _ in rows} == {0}, "the others have no neighbourhood"
    other = said.copy()
    (_, one, length), (_, two, _) = rows[:2]
    other[0, one, 0] += 1
    other[0, two, -1] += 1 - probes.target_mask[0, two, 1, -1]  # behind the answer, if there is room
    other[0, 0] += 1  # no neighbourhood
    found = agreement(said, other, probes)
    assert found[0] == pytest.approx((len(rows) - 1 + (length - 1) / length) / len(rows))
    assert np.isnan(found[1:]).all()


def test_packed_rows_read_as_padded_ones(case: Case) -> None:
    probes = probes_of(case)
    step = jax.jit(read, static_argnums=0, static_argnames="room")
    whole = step(case.model, case.checkpoint.params, probes)
    room = room_of(probes, [slice(0, 3)])
    assert room.tokens < 0.7 * probes.tokens.size
    assert room.reads < 0.7 * probes.target.size
    packed = step(case.model, case.checkpoint.params, probes, room=room)
    np.testing.assert_allclose(packed.nll, whole.nll, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(packed.exact, whole.exact)


def test_room_is_for_the_fullest_batch(gpt2: Case) -> None:
    probes = probes_of(gpt2)
    tokens = ((probes.branch >= 0) & (probes.kind >= 0)[..., None]).sum(axis=(1, 2))
    reads, whole = probes.target_mask.sum(axis=(1, 2, 3)), (probes.tokens[0].size, probes.target[0].size)
    each = [slice(i, i + 1) for i in range(3)]
    for batches in (each[:1], each[1:2], each[2:], each, [slice(0, 3)]):
        room, facts = room_of(probes, batches), batches[0].stop - batches[0].start
        for given, real, size in zip(room, (tokens, reads), whole, strict=True):
            most = max(real[batch].sum() for batch in batches)
            assert most <= given <= most + facts * size / 16 + 1


def test_a_branch_does_not_see_the_other(gpt2: Case) -> None:
    """Any other tokens in the new target leave the reading of the true one bit by bit as it is."""
    probes = probes_of(gpt2, FACTS[:1])
    step = jax.jit(read, static_argnums=0)
    before = step(gpt2.model, gpt2.checkpoint.params, probes)
    changed = probes._replace(tokens=np.where(probes.branch == 1, 5, probes.tokens))
    after = step(gpt2.model, gpt2.checkpoint.params, changed)
    real = probes.kind[0] >= 0
    assert np.array_equal(before.nll[0, real, 1], after.nll[0, real, 1])
    assert (np.asarray(before.nll[0, real, 0]) != np.asarray(after.nll[0, real, 0])).all()


KIND = jnp.array([[REWRITE, PARAPHRASE, NEIGHBORHOOD, NEIGHBORHOOD, -1], [REWRITE, -1, -1, -1, -1]])


def made(new: Any, true: Any) -> Readings:
    nll = jnp.stack([jnp.asarray(new, jnp.float32), jnp.asarray(true, jnp.float32)], axis=-1)
    return Readings(
        nll, jnp.zeros(nll.shape, bool), jnp.full(nll.shape, 0.5), jnp.zeros((*nll.shape, 1), int)
    )


def test_a_tie_is_a_failure_everywhere() -> None:
    scores = score(made(np.ones((2, 5)), np.ones((2, 5))), KIND)
    for kind in KINDS:
        assert float(scores[f"{kind}_success"][0]) == 0.0


def test_success_is_the_new_target_on_the_prompts_and_the_true_one_around_them() -> None:
    new, true = np.full((2, 5), 1.0), np.full((2, 5), 2.0)
    new[0, 3], true[0, 3] = 3.0, 1.0
    scores = score(made(new, true), KIND)
    assert float(scores["rewrite_success"][0]) == float(scores["paraphrase_success"][0]) == 1.0
    assert float(scores["neighborhood_success"][0]) == 0.5  # mean within the fact
    assert float(scores["rewrite_magnitude"][0]) == pytest.approx(np.exp(-1) - np.exp(-2), rel=1e-5)
    around = np.mean([np.exp(-2) - np.exp(-1), np.exp(-1) - np.exp(-3)])
    assert float(scores["neighborhood_magnitude"][0]) == pytest.approx(around, rel=1e-5)


def test_a_kind_without_rows_is_nan_and_numbers_that_are_not_finite_fail() -> None:
    scores = score(made(np.full((2, 5), np.nan), np.full((2, 5), np.nan)), KIND)
    assert all(np.isnan(scores[f"{kind}_success"][1]) for kind in ("paraphrase", "neighborhood"))
    assert all(float(scores[f"{kind}_success"][0]) == 0.0 for kind in KINDS)


def test_summary_is_means_over_facts_and_their_harmonic_mean() -> None:
    scores = {
        f"{kind}_{what}": np.zeros(2) for kind in KINDS for what in ("success", "magnitude", "accuracy")
    }
    scores["rewrite_success"] = np.array([1.0, 1.0])
    scores["paraphrase_success"] = np.array([0.5, np.nan])
    scores["neighborhood_success"] = np.array([0.0, 0.5])
    scores["rewrite_accuracy"] = np.array([1.0, 0.0])
    earlier = summarise(scores)
    found = summarise(scores | {f"{kind}_tokens": np.array([0.25, 0.5]) for kind in KINDS})
    assert {name: x for name, x in found.items() if name not in ("ET", "PT", "NT")} == earlier
    assert (found["ET"], found["PT"], found["NT"]) == (0.375,) * 3
    assert (found["ES"], found["PS"], found["NS"], found["EA"]) == (1.0, 0.5, 0.25, 0.5)
    assert found["S"] == pytest.approx(3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.25))
    assert summarise(scores | {"neighborhood_success": np.zeros(2)})["S"] == 0.0
    unscored = summarise({name: np.full(2, np.nan) for name in scores})
    assert all(np.isnan(value) for value in unscored.values())


def test_an_edited_model_is_read_with_its_edited_matrices(gpt2: Case) -> None:
    probes, params = probes_of(gpt2), gpt2.params([0])
    step = jax.jit(probe_scores, static_argnums=0)
    plain = step(gpt2.model, gpt2.checkpoint.params, probes)
    split = step(gpt2.model, params, probes)
    edited = step(gpt2.model, params._replace(edited=jax.tree.map(lambda w: 2 * w, params.edited)), probes)
    np.testing.assert_allclose(split["rewrite_magnitude"], plain["rewrite_magnitude"], rtol=1e-5, atol=1e-8)
    assert (np.asarray(edited["rewrite_magnitude"]) != np.asarray(split["rewrite_magnitude"])).all()
