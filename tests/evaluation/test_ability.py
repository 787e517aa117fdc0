"""Answers to questions against transformers in float64: one prompt, one option at a time, no padding."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Array

from jaxedit.data.questions import encode_quizzes
from jaxedit.data.tasks import Question
from jaxedit.errors import ConfigError, FactError
from jaxedit.evaluation.ability import (
    INVALID,
    Answers,
    ability,
    answers,
    likeliest,
    read_questions,
    score,
)
from jaxedit.types import Quiz
from tests.cases import Case, make_case

BEFORE = "The capital of the country is Rome. "
ENDS = (
    "Paris is the capital of",
    "The Eiffel Tower is located in the city of",
    "The mother tongue of Danielle Darrieux is",
    "The famous tower is",
    "Is Lyon a town? It lies in",
    "Because of the weather",
    "Étienne Brûlé",
    "The town of",
    "What plays",
)
CHOICES = (("Rome", "Italy"), ("North Macedonia", "English", "jazz", "North"), ("Lyon", "the north of Italy"))
ASKED = tuple(Question(f"record {i}", BEFORE + end, CHOICES[i % 3], i % 2) for i, end in enumerate(ENDS))


def log_p(case: Case, question: Question) -> list[float]:
    """Log-probability of each option's tokens after the prompt."""
    tokenizer, result = case.checkpoint.tokenizer, []
    ids = tokenizer(question.text)["input_ids"]
    for choice in question.choices:
        option = tokenizer(" " + choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            table = case.oracle(torch.tensor([ids + option])).logits[0].log_softmax(-1)
        result.append(sum(table[len(ids) - 1 + i, token].item() for i, token in enumerate(option)))
    return result


def greedy(case: Case, question: Question) -> int:
    """The longest option that what greedy decoding writes begins with."""
    tokenizer = case.checkpoint.tokenizer
    ids = tokenizer(question.text)["input_ids"]
    written: list[int] = []
    for _ in range(8):
        with torch.no_grad():
            written.append(int(case.oracle(torch.tensor([ids + written])).logits[0, -1].argmax()))
    options = [tokenizer(" " + choice, add_special_tokens=False)["input_ids"] for choice in question.choices]
    fit = [i for i, option in enumerate(options) if written[: len(option)] == option]
    return max(fit, key=lambda i: len(options[i]), default=INVALID)


def quiz_of(case: Case, questions: Sequence[Question], batch: int, max_length: int = 64) -> Quiz:
    tokenizer = case.checkpoint.tokenizer
    return encode_quizzes({"task": questions}, tokenizer, max_length=max_length, batch=batch)["task"]


def agree(found: Answers, expected: list[list[float]]) -> None:
    for row, values in zip(found.log_p, expected, strict=True):
        np.testing.assert_allclose(row[: len(values)], values, rtol=1e-5, atol=1e-5)
        assert (row[len(values) :] == -np.inf).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_log_probabilities_are_those_of_single_prompts(
    name: str, cases: dict[str, Case], case_of: Callable[[str], Case]
) -> None:
    """Windows, rotary angles and learned positions behind a shared prefix too."""
    case = cases[name] if name in cases else case_of(name)
    expected = [log_p(case, question) for question in ASKED]
    quiz = quiz_of(case, ASKED, 4)
    assert quiz.prefix_mask.sum() > 4, "the prompts share a prefix"
    agree(answers(case.model, case.checkpoint.params, quiz), expected)


def test_neither_batch_nor_padding_nor_prefix_changes_an_answer(gpt2: Case) -> None:
    whole = answers(gpt2.model, gpt2.checkpoint.params, quiz_of(gpt2, ASKED, 2))
    other = [Question("record 0", "Lyon", ("Rome", "Italy"), 0)]  # shares nothing: no prefix at all
    mixed = quiz_of(gpt2, [*ASKED, *other], 16)
    assert len(mixed.prefix) == 0
    found = answers(gpt2.model, gpt2.checkpoint.params, mixed)
    np.testing.assert_allclose(found.log_p[:-1], whole.log_p, rtol=1e-5)
    assert found.greedy[:-1].tolist() == whole.greedy.tolist()
    for i in (0, 4):
        alone = answers(gpt2.model, gpt2.checkpoint.params, quiz_of(gpt2, ASKED[i : i + 1], 1))
        count = len(ASKED[i].choices)
        np.testing.assert_allclose(alone.log_p[0, :count], whole.log_p[i, :count], rtol=1e-5)


def outspoken(case: Case) -> dict[str, Array]:
    """Parameters of a model that likes to begin words; the oracle, which this changes, has the same."""
    ids = [token for text, token in case.checkpoint.tokenizer.get_vocab().items() if re.match("Ġ.", text)]
    with torch.no_grad():
        case.oracle.get_input_embeddings().weight[ids] *= 3
    params = case.checkpoint.params
    return params | {"embedding": params["embedding"].at[np.array(ids)].multiply(3)}


def test_generated_answers_are_those_of_greedy_decoding(tmp_path: Path) -> None:
    case = make_case("gpt2", tmp_path)
    params = outspoken(case)
    choices = (("is", "North North", "North"), ("Rome", "is is"), ("in in in", "weather is", "weather"))
    asked = [Question("", question.text, choices[i % 3], 1) for i, question in enumerate(ASKED)]
    expected = [greedy(case, question) for question in asked]
    assert sorted(set(expected)) == [INVALID, 0, 1, 2], "every case is there"
    quiz = quiz_of(case, asked, 4)
    found = answers(case.model, params, quiz)
    assert found.greedy.tolist() == expected
    agree(found, [log_p(case, question) for question in asked])
    likely = np.array([np.argmax(log_p(case, question)) for question in asked])
    gold = np.ones(len(asked), int)
    assert ability(case.model, params, quiz) == (
        score(likely, gold),
        score(np.array(expected), gold),
        len(asked),
        0,
    )


def weighted_f1(given: Sequence[int], gold: Sequence[int]) -> float:
    """By counting."""
    total = 0.0
    for option in set(gold):
        both = sum(a == b == option for a, b in zip(given, gold, strict=True))
        precision = both / given.count(option) if option in given else 0.0
        recall = both / gold.count(option)
        total += gold.count(option) * (2 * precision * recall / (precision + recall) if both else 0.0)
    return total / len(gold)


def test_scores_are_those_of_counting() -> None:
    rng = np.random.default_rng(0)
    for options in (2, 4):
        given, gold = rng.integers(-1, options, 50), rng.integers(0, options, 50)
        found = score(given, gold)
        assert found.f1 == pytest.approx(weighted_f1(given.tolist(), gold.tolist()))
        assert found.accuracy == pytest.approx(np.mean(given == gold))
        assert found.invalid == np.mean(given < 0)
    assert score(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1])).f1 == pytest.approx(1 / 3)
    assert score(np.full(4, INVALID), np.array([0, 0, 1, 1])) == (0, 0, 1)
    assert score(np.array([1, 0]), np.array([1, 0])) == (1, 1, 0)


def test_a_model_without_numbers_answers_nothing(gpt2: Case) -> None:
    params = gpt2.checkpoint.params
    broken = params | {"embedding": params["embedding"] * math.nan}
    found = ability(gpt2.model, broken, quiz_of(gpt2, ASKED, 4))
    assert found.likelihood == found.generation == (0, 0, 1)
    assert likeliest(Answers(np.array([[-1.0, -np.inf, -3.0]]), np.array([0]))).tolist() == [0]


def test_few_programs_serve_all_tasks_and_parameters(gpt2: Case) -> None:
    """One for each length of row, whatever the task; edited parameters need no other."""
    sets = {"a": ASKED[:5], "b": ASKED[2:7], "c": ASKED[4:]}
    quizzes = encode_quizzes(sets, gpt2.checkpoint.tokenizer, max_length=64, batch=2)
    lengths = {batch.tokens.shape for quiz in quizzes.values() for batch in quiz.batches}
    read_questions.clear_cache()
    params = gpt2.params([1])
    changed = params._replace(edited={path: 2 * w for path, w in params.edited.items()})
    before, after = ([answers(gpt2.model, p, quiz) for quiz in quizzes.values()] for p in (params, changed))
    assert read_questions._cache_size() == len(lengths) <= 2
    assert not np.allclose(before[0].log_p, after[0].log_p), "the edit can be seen"


def test_questions_too_long_are_counted_and_no_question_is_refused(gpt2: Case) -> None:
    lengths = [len(gpt2.checkpoint.tokenizer(question.text)["input_ids"]) for question in ASKED]
    limit = sorted(lengths)[4] + 8
    quiz = quiz_of(gpt2, ASKED, 4, max_length=limit)
    assert 0 < quiz.left_out < len(ASKED)
    assert ability(gpt2.model, gpt2.checkpoint.params, quiz).asked == len(ASKED) - quiz.left_out
    with pytest.raises(FactError, match="fewer shots"):
        quiz_of(gpt2, ASKED, 4, max_length=5)
    with pytest.raises(FactError, match="no questions"):
        quiz_of(gpt2, (), 4)
    with pytest.raises(ConfigError, match="batch"):
        quiz_of(gpt2, ASKED, 0)
