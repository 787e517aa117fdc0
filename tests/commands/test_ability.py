"""What stored runs can still do: the numbers of exported models, asked by transformers one prompt at a time."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxedit.cli import main
from jaxedit.data import Fact, FewShot, dump_jsonl, few_shot, load_task
from jaxedit.errors import ConfigError
from jaxedit.evaluation.ability import score
from jaxedit.evaluation.entropy import generation_entropy
from jaxedit.evaluation.generation import sample
from jaxedit.pipeline import model_at
from jaxedit.pipeline.ability import ability_at
from jaxedit.pipeline.asked import AbilityAt
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.trajectory.store import RunFolder
from tests.reference.tiny import CORPUS, save_tiny, tiny_gpt2, tiny_tokenizer

FACTS = [
    Fact(
        id=subject,
        subject=subject,
        prompt=f"The town of {subject} is located in",
        target_new=new,
        target_true="Lyon",
        neighborhood=(f"The capital of the country {subject} is",),
    )
    for subject, new in zip(
        ("Paris", "Rome", "Italy", "English", "Eiffel", "Danielle"), ("Rome", "jazz") * 3, strict=True
    )
]
SST2 = [{"sentence": text, "label": i % 2, "idx": i} for i, text in enumerate(CORPUS)]
MMLU = [
    {"question": text[:20], "choices": ["Rome", "Lyon", "jazz"], "answer": i % 3, "subject": "towns"}
    for i, text in enumerate(CORPUS)
]
SHOTS = FewShot(shots=2, pool=4, items=5, seed=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, tasks, a text, and a finished run of three updates, two facts each."""
    home = tmp_path_factory.mktemp("ability")
    save_tiny(tiny_gpt2(torch.float32, n_positions=512), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    (home / "tasks").mkdir()
    (home / "tasks" / "sst2.json").write_text(json.dumps(SST2))
    (home / "tasks" / "mmlu.json").write_text(json.dumps(MMLU))
    (home / "text.txt").write_text(" ".join(CORPUS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl"), "--chunk", "3"]
        given += ["--out", str(home / "run"), "--editor", "memit", "--count", "6", "--batch-size", "2"]
        main(
            [
                *given,
                "--no-known",
                "--settings.layers",
                "1",
                "--settings.steps",
                "2",
                "--moments.length",
                "32",
            ]
        )
        yield home


@pytest.fixture(scope="module")
def found(home: Path) -> list[AbilityAt]:
    config = AbilityConfig(
        (home / "tasks",), SHOTS, home / "text.txt", block=32, generations=2, generated=20, groups=2, batch=5
    )
    return list(ability_at(home / "run", (3, 0, 2), config))


def table_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token after each of the ids."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_answers_and_text_are_those_of_the_exported_models(home: Path, found: list[AbilityAt]) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer((home / "text.txt").read_text())["input_ids"]
    blocks = [ids[i : i + 32] for i in range(0, len(ids) - 31, 32)]
    tables = {}
    for one in found:
        out = home / f"model-{one.step}"
        main(["at", str(home / "run"), str(one.step), "--out", str(out)])
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64).eval()
        for name in ("sst2", "mmlu"):
            asked = few_shot(load_task(home / "tasks" / f"{name}.json"), SHOTS)
            given = []
            for question in asked:
                start, sums = tokenizer(question.text)["input_ids"], []
                for choice in question.choices:
                    option = tokenizer(" " + choice, add_special_tokens=False)["input_ids"]
                    table = table_of(model, start + option)
                    sums.append(sum(table[len(start) - 1 + i, x].item() for i, x in enumerate(option)))
                given.append(int(np.argmax(sums)))
            expected = score(np.array(given), np.array([question.gold for question in asked]))
            assert one.tasks[name].likelihood == pytest.approx(expected)
            assert (one.tasks[name].asked, one.tasks[name].left_out) == (5, 0)
        tables[one.step] = torch.stack([table_of(model, block) for block in blocks])
        targets = torch.tensor(blocks)[:, 1:, None]
        loss = -tables[one.step][:, :-1].gather(-1, targets).mean()
        assert one.perplexity == pytest.approx(loss.exp().item(), rel=1e-5)
    for one in found:
        kl = (tables[0].exp() * (tables[0] - tables[one.step])).sum(-1).mean().item()
        assert one.drift is not None
        assert one.drift.kl == pytest.approx(kl, rel=1e-4, abs=1e-12)
    assert found[2].drift.kl > 1e-4, "the edits can be seen"


def test_the_youngest_facts_score_as_they_did_when_they_were_written(
    home: Path, found: list[AbilityAt]
) -> None:
    stored = RunFolder.open(home / "run")
    assert [one.step for one in found] == [0, 2, 3]
    assert [one.facts for one in found] == [0, 4, 6]
    assert found[0].retention == []
    young, old = found[1].retention
    assert (young.youngest, young.oldest, old.youngest, old.facts) == (0, 0, 1, 2)
    for what in ("ES", "NS", "EM", "NM"):
        assert young.now[what] == pytest.approx(young.then[what], rel=1e-4, abs=1e-6)
    assert old.now["EM"] != pytest.approx(old.then["EM"], rel=1e-4), "later updates can be seen"
    final, groups = stored.read("summary")["final"], found[2].retention
    for what in ("ES", "NS", "EM"):
        mean = sum(group.now[what] * group.facts for group in groups) / 6
        assert mean == pytest.approx(final[what], rel=1e-4, abs=1e-6)


def test_the_command_writes_what_was_found(
    home: Path, found: list[AbilityAt], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["ability", str(home / "run"), "--tasks", str(home / "tasks"), "--text", str(home / "text.txt")]
    given += [
        "--few-shot.shots",
        "2",
        "--few-shot.pool",
        "4",
        "--few-shot.items",
        "5",
        "--few-shot.seed",
        "1",
    ]
    main(
        [
            *given,
            "--block",
            "32",
            "--batch",
            "5",
            "--generations",
            "2",
            "--generated",
            "20",
            "--groups",
            "2",
            "--steps",
            "0",
            "2",
            "3",
        ]
    )
    out = capsys.readouterr().out
    assert "Weighted F1" in out
    assert "Facts by age" in out
    folder = home / "run-ability"
    written = json.loads((folder / "ability.json").read_text())
    assert [one["step"] for one in written] == [0, 2, 3]
    for one, expected in zip(written, found, strict=True):
        assert one["tasks"]["mmlu"]["generation"]["invalid"] == expected.tasks["mmlu"].generation.invalid
        assert one["drift"]["kl"] == expected.drift.kl
        assert one["perplexity"] == expected.perplexity
        assert one["entropy"] == expected.entropy
        assert [group["now"]["ES"] for group in one["retention"]] == [x.now["ES"] for x in expected.retention]
        assert all(group["now"]["PS"] is None for group in one["retention"]), "no paraphrases: not a number"
    assert json.loads((folder / "config.json").read_text())["few_shot"]["seed"] == 1
    with pytest.raises(SystemExit):
        main(["ability", str(home / "run")])
    assert "exists already" in capsys.readouterr().err
    assert RunFolder.open(home / "run").damages() == []


def test_generated_texts_follow_the_prompts(home: Path, found: list[AbilityAt]) -> None:
    checkpoint = model_at(home / "run", 2)
    rows = [checkpoint.tokenizer(fact.prompt)["input_ids"] for fact in FACTS[:2]]
    width = max(map(len, rows))
    tokens = np.array([[0] * (width - len(row)) + row for row in rows])
    valid = np.arange(width) >= width - np.array([[len(row)] for row in rows])
    key = jax.random.fold_in(jax.random.key(0), 0)
    drawn = sample(checkpoint.model, checkpoint.params, tokens, valid, 20, key, 5)
    texts = [checkpoint.tokenizer.decode(row, skip_special_tokens=True) for row in np.asarray(drawn).tolist()]
    assert found[1].entropy == pytest.approx(generation_entropy(texts))
    assert found[1].entropy > 0


def test_a_step_is_served_to_the_harness(home: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install jaxedit[harness]")
    from lm_eval.api.instance import Instance

    from jaxedit.harness import served

    main(["at", str(home / "run"), "2", "--out", str(home / "served")])
    model = AutoModelForCausalLM.from_pretrained(home / "served", dtype=torch.float64).eval()
    ids = tiny_tokenizer()(CORPUS[0])["input_ids"]
    table = table_of(model, [1, *ids])
    expected = sum(table[i, token].item() for i, token in enumerate(ids))
    asked = Instance("loglikelihood_rolling", {}, (CORPUS[0],), 0)
    assert served(home / "run", 2).loglikelihood_rolling([asked]) == pytest.approx([expected], rel=1e-5)
    assert served(home / "run", 0).loglikelihood_rolling([asked]) != pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--steps", "0", "4"], "no step 4"),
        (["--steps", "-1"], "no step -1"),
        (["--points", "1"], "points is 1"),
        (["--groups", "0"], "groups is 0"),
        (["--generations", "-1"], "generations is -1"),
        (["--generated", "0"], "generated is 0"),
        (["--batch", "0"], "batch is 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(
    home: Path, given: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's model is out of reach: whoever loads it first says so instead."""
    shutil.copytree(home / "run", tmp_path / "run")
    hidden = (home / "model").rename(home / "hidden")
    try:
        with pytest.raises(SystemExit):
            main(["ability", str(tmp_path / "run"), *given])
    finally:
        hidden.rename(home / "model")
    assert named in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_results_appear_complete_or_not_at_all(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **options: object) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    given = ["ability", str(home / "run"), "--steps", "0", "--out", str(tmp_path / "out")]
    with pytest.raises((OSError, SystemExit)):
        main([*given, "--groups", "1"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_ask_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is asked"):
        list(ability_at(home / "run", (0,), AbilityConfig(retention=False)))
    (only,) = ability_at(home / "run", (3,), AbilityConfig(groups=1))
    assert (only.tasks, only.perplexity, only.drift) == ({}, None, None)
    assert not math.isnan(only.retention[0].now["ES"])
