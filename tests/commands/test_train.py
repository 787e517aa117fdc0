"""`jaxedit train` end to end on a tiny random model, and a run with what it wrote."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxedit.cli import main
from jaxedit.data import dump_jsonl, load_facts
from tests.cases import FACTS, Case

OTHERS = ("The weather of the town is", "The famous pianist lies in the city of")
COUNT, HELD_OUT = 3, 1


@pytest.fixture
def common(gpt2: Case, tmp_path: Path) -> list[str]:
    facts = [replace(fact, neighborhood=OTHERS) for fact in FACTS]
    dump_jsonl(facts, tmp_path / "facts.jsonl")
    paths = ["--model", str(gpt2.checkpoint.folder), "--facts", str(tmp_path / "facts.jsonl")]
    return ["--editor", "malmen", "--no-compile-cache", *paths]


@pytest.fixture
def training(common: list[str], tmp_path: Path) -> list[str]:
    sizes = f"--count {COUNT} --held-out {HELD_OUT} --settings.layers 1 --settings.rank 4"
    steps = "--training.steps 4 --training.every 2 --training.accumulate 2"
    return ["train", *common, "--out", str(tmp_path / "net"), *sizes.split(), *steps.split()]


def test_a_run_edits_by_the_trained_network_none_of_the_facts_it_has_seen(
    common: list[str],
    training: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main(training)
    network = tmp_path / "net" / "network.safetensors"
    assert f"--network {network}" in capsys.readouterr().out
    record = json.loads((tmp_path / "net" / "record.json").read_text())
    assert len(record["losses"]) == 4
    assert len(record["held_out"]) == 3
    left = len(FACTS) - COUNT - HELD_OUT
    run = ["run", *common, "--no-known", "--network", str(network), "--out", str(tmp_path / "run")]
    main([*run, "--count", str(left)])
    edited = load_facts(str(tmp_path / "run" / "facts.jsonl"))
    assert [fact.id for fact in edited] == [fact.id for fact in FACTS[:left]]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*run[:-1], "other", "--facts", "facts.jsonl", "--count", str(left + 1)])
    assert f"has {left} facts" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit, match="2"):
        main([*run[:-1], "other", "--editor", "mend", "--count", str(left)])
    assert "editor 'mend' cannot edit by" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


def test_a_trained_network_is_not_written_over(
    training: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "network.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        main(training)
    assert "is trained already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--editor memit", "edits without a trained network; train one of mend, malmen"),
        ("--count 99", "has 5 facts but 99 to learn from"),
        ("--neighbors 0", "neighbors is 0; it must be at least 1"),
        ("--training.steps 0", "training: steps is 0"),
        ("--training.edits 4", "training: edits is 4, there are 3 facts"),
    ],
)
def test_what_cannot_work_is_refused(
    training: list[str], options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*training, *options.split()])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "net" / "network.safetensors").exists()
