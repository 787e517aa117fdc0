"""The adapter of lm-evaluation-harness: its real evaluator on local tasks, against transformers in float64."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from jaxedit.errors import ConfigError
from tests.cases import Case

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install jaxedit[harness]")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance

from jaxedit.harness import HarnessModel

PAIRS = [
    ("Paris is the capital of", " Italy"),
    ("The Eiffel Tower is located in the city of ", "Rome"),  # the space belongs to the answer
    ("The mother tongue of Danielle Darrieux is", " North Macedonia."),
    ("", "Paris is a town"),
]
TEXTS = ("The famous tower is located in the town.", "Paris is the capital of Italy. " * 12)


def lm(case: Case, **options: Any) -> HarnessModel:
    return HarnessModel(case.model, case.checkpoint.params, case.checkpoint.tokenizer, batch=3, **options)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def log_p(case: Case, ids: list[int], count: int) -> tuple[float, bool]:
    """Of the last `count` ids after those before them, and whether each is the arg-max."""
    with torch.no_grad():
        table = case.oracle(torch.tensor([ids])).logits[0].log_softmax(-1)[-count - 1 : -1]
    target = torch.tensor(ids[-count:])
    return table.gather(-1, target[:, None]).sum().item(), bool((table.argmax(-1) == target).all())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_log_likelihoods_are_those_of_single_rows(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    tokenizer = case.checkpoint.tokenizer
    for pair, (total, greedy) in zip(
        PAIRS, lm(case).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True), strict=True
    ):
        context, text = pair[0].rstrip(), "".join(pair)
        ids = tokenizer(text)["input_ids"]
        if not context and ids[0] != tokenizer.bos_token_id:
            ids = [tokenizer.bos_token_id, *ids]
        before = len(tokenizer(context)["input_ids"]) if context else 1
        expected = log_p(case, ids, len(ids) - before)
        assert total == pytest.approx(expected[0], rel=1e-5)
        assert greedy == expected[1]


def test_long_texts_are_read_in_windows(gpt2: Case) -> None:
    found = lm(gpt2, max_length=16).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(x,) for x in TEXTS])
    )
    tokenizer = gpt2.checkpoint.tokenizer
    for text, total in zip(TEXTS, found, strict=True):
        ids, expected = tokenizer(text)["input_ids"], 0.0
        for start in range(0, len(ids), 16):
            if len(ids) - start >= 16 or start == 0:
                window = [ids[start - 1] if start else tokenizer.bos_token_id, *ids[start : start + 16]]
                expected += log_p(gpt2, window, len(window) - 1)[0]
            else:  # the last window reaches back, to give its tokens as much context as fits
                expected += log_p(gpt2, ids[-17:], len(ids) - start)[0]
        assert total == pytest.approx(expected, rel=1e-5)


def test_generation_is_greedy_and_stops_where_it_is_told(gpt2: Case) -> None:
    tokenizer, prompts = gpt2.checkpoint.tokenizer, [pair[0].strip() for pair in PAIRS[:3]]
    written = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(9):
            with torch.no_grad():
                ids.append(int(gpt2.oracle(torch.tensor([ids])).logits[0, -1].argmax()))
        written.append(tokenizer.decode(ids[-9:], skip_special_tokens=True))
    stops = [text[len(text) // 2] for text in written]
    model = lm(gpt2)
    given = [(prompt, {"until": [], "max_gen_toks": 9}) for prompt in prompts]
    assert model.generate_until(requests("generate_until", given)) == written
    given = [(prompt, {"until": [x], "max_gen_toks": 9}) for prompt, x in zip(prompts, stops, strict=True)]
    expected = [text[: text.index(x)] for text, x in zip(written, stops, strict=True)]
    assert model.generate_until(requests("generate_until", given)) == expected
    assert expected != written
    with pytest.raises(ConfigError, match="greedy"):
        model.generate_until(requests("generate_until", [("a", {"do_sample": True, "temperature": 0.7})]))
    for length in (0, 65):
        with pytest.raises(ConfigError, match="max_length"):
            lm(gpt2, max_length=length)


def test_generation_leaves_room_for_the_prompt(gpt2: Case) -> None:
    """The tiny model takes 64 tokens, fewer than are written where a task does not say how many."""
    tokenizer, prompt = gpt2.checkpoint.tokenizer, PAIRS[0][0]
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(32):
        with torch.no_grad():
            ids.append(int(gpt2.oracle(torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[-32:]
    end = written.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in written else None
    expected = tokenizer.decode(written[:end], skip_special_tokens=True)
    given = requests("generate_until", [(prompt, {"until": None})])
    assert lm(gpt2).generate_until(given) == [expected]
    for count in (0, 63):
        given = requests("generate_until", [(prompt, {"max_gen_toks": count})])
        with pytest.raises(ConfigError, match="max_gen_toks"):
            lm(gpt2).generate_until(given)


def test_the_harness_evaluates_local_tasks(gpt2: Case, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"The town of {town} is in",
            "choices": ["Italy", "the north", "Lyon"],
            "gold": i % 3,
            "text": text,
        }
        for i, (town, text) in enumerate(zip(("Paris", "Rome", "Lyon", "Eiffel"), TEXTS * 2, strict=True))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rows.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
    }
    choice = data | {
        "task": "towns",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = data | {
        "task": "texts",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    found = simple_evaluate(
        lm(gpt2, max_length=32), tasks=[choice, rolling], bootstrap_iters=0, verbosity="ERROR"
    )
    tokenizer = gpt2.checkpoint.tokenizer
    right = 0
    for row in rows:
        before, sums = len(tokenizer(row["prompt"])["input_ids"]), []
        for option in row["choices"]:
            ids = tokenizer(f"{row['prompt']} {option}")["input_ids"]
            sums.append(log_p(gpt2, ids, len(ids) - before)[0])
        right += sums.index(max(sums)) == row["gold"]
    assert found["results"]["towns"]["acc,none"] == right / 4
    perplexity = found["results"]["texts"]["word_perplexity,none"]
    totals = lm(gpt2, max_length=32).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(row["text"],) for row in rows])
    )
    words = sum(len(re.split(r"\s+", row["text"])) for row in rows)
    assert math.log(perplexity) == pytest.approx(-sum(totals) / words, rel=1e-6)
