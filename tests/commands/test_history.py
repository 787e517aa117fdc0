"""Commands on the steps of runs, on a tiny random model: low-rank updates with a memory, and dense ones."""

import importlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxedit import pipeline
from jaxedit.cli import asked_to_stop, main, parse
from jaxedit.data import dump_jsonl
from jaxedit.editors import Settings
from jaxedit.errors import FactError
from jaxedit.models.sources import load
from jaxedit.pipeline import quiet
from jaxedit.pipeline.plan import plan_of
from jaxedit.pipeline.sequence import finish
from jaxedit.report.steps import change_table
from jaxedit.trajectory.store import RunFolder
from tests.cases import same_bits
from tests.commands.test_cli import FACTS
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_tokenizer

PATH = "layers.1.mlp.down.kernel"
SETTINGS = {
    "memit": ["--settings.memory", "True"],
    "ft": ["--settings.learning-rate", "1e-3"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, facts, and a finished run of each editor."""
    home = tmp_path_factory.mktemp("history")
    save_tiny(tiny_gpt2(torch.float32), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        for editor in SETTINGS:
            main(arguments(home, editor, home / editor))
        yield home


def arguments(home: Path, editor: str, out: Path) -> list[str]:
    given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl"), "--out", str(out)]
    given += ["--editor", editor, "--count", "3", "--chunk", "2", "--no-known", "--moments.length", "32"]
    return [*given, "--settings.layers", "1", "--settings.steps", "2", *SETTINGS[editor]]


def final(run: Path) -> dict:
    folder = RunFolder.open(run)
    like = {PATH: load(str(run.parent / "model")).params[PATH]}
    return folder.restore(len(folder.journal.chunks), "edited", like)


@pytest.mark.parametrize("editor", SETTINGS)
def test_every_step_can_be_had_again(home: Path, editor: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, prepared = pipeline.trajectory(home / editor)
    lines = found.folder.metrics()
    assert same_bits(found.at(0), prepared.params.edited)
    assert same_bits(found.at(3), final(home / editor))
    for step in (1, 2, 3):
        norm = np.float32(lines[step - 1]["norm"][PATH])
        assert np.linalg.norm(found.at(step)[PATH]) == pytest.approx(norm, rel=1e-6)
    main(["at", str(home / editor), "2", "--out", str(home / f"{editor}-2")])
    assert same_bits(load(str(home / f"{editor}-2")).params[PATH], found.at(2)[PATH])
    main(["undo", str(home / editor), "2", "--out", str(home / f"{editor}-undone")])
    assert same_bits(load(str(home / f"{editor}-undone")).params[PATH], found.at(2)[PATH])
    main(["history", str(home / editor)])
    out = capsys.readouterr().out
    assert all(fact.id in out for fact in FACTS)


@pytest.mark.parametrize("editor", SETTINGS)
def test_a_change_is_a_small_file_for_the_same_base(home: Path, editor: str) -> None:
    file = home / f"{editor}.safetensors"
    main(["diff", str(home / editor), "0", "3", "--out", str(file)])
    main(["apply", str(file), str(home / "model"), str(home / f"{editor}-applied")])
    applied = load(str(home / f"{editor}-applied")).params
    np.testing.assert_allclose(applied[PATH], final(home / editor)[PATH], rtol=1e-5, atol=1e-6)
    with pytest.raises(SystemExit):
        main(["apply", str(file), str(home / f"{editor}-applied"), str(home / "twice")])
    assert not (home / "twice").exists()


@pytest.mark.parametrize("editor", SETTINGS)
def test_a_branch_goes_on_as_its_run_did(home: Path, editor: str) -> None:
    """All facts here need arrays of the same shapes, and chunks are as long: it is the same program."""
    branch = home / f"{editor}-branch"
    main(["branch", str(home / editor), "1", str(branch)])
    folder = RunFolder.open(branch)
    assert folder.read("environment")["branch"]["step"] == 1
    assert folder.updates == 2
    found = pipeline.trajectory(branch)[0]
    original = pipeline.trajectory(home / editor)[0]
    for step in (0, 1, 2):
        assert same_bits(found.at(step), original.at(step + 1)), step


@pytest.mark.parametrize("editor", SETTINGS)
def test_a_branch_in_other_chunks_is_another_program_with_the_same_updates(home: Path, editor: str) -> None:
    branch = home / f"{editor}-branch-of-ones"
    main(["branch", str(home / editor), "1", str(branch), "--chunk", "1"])
    found, original = (pipeline.trajectory(run)[0] for run in (branch, home / editor))
    assert same_bits(found.at(0), original.at(1))
    for step in (1, 2):
        np.testing.assert_allclose(found.at(step)[PATH], original.at(step + 1)[PATH], rtol=0, atol=1e-6)


def test_a_branch_takes_another_editor_and_keeps_what_was_edited(home: Path) -> None:
    """Settings go with the editor: those of the run before, made for fine-tuning, do not."""
    branch, other = home / "other", str(home / "facts.jsonl")
    main(
        ["branch", str(home / "ft"), "2", str(branch), "--editor", "r-rome", "--facts", other, "--count", "1"]
    )
    steps, config, _ = pipeline.trajectory(branch)
    assert config.settings == Settings()
    assert same_bits(steps.at(0), pipeline.trajectory(home / "ft")[0].at(2))
    assert steps.steps == 1
    assert RunFolder.open(branch).damages() == []


def test_sigterm_finishes_the_chunk_and_the_run_goes_on_to_the_same_bits(home: Path) -> None:
    """The signal comes from the system, to this process, as before a machine is taken away."""
    out = home / "terminated"

    def report(stage: str, done: int, total: int) -> None:
        if stage == "editing" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with asked_to_stop() as stop:
        folder = pipeline.run(parse(arguments(home, "memit", out)).config, report, stop)
    assert folder.updates == 2
    assert not folder.finished
    assert folder.damages() == []
    main(["resume", str(out)])
    for name in ("metrics.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (home / "memit" / name).read_bytes()
    assert same_bits(final(out), final(home / "memit"))


def test_a_refused_update_stops_the_run_and_can_be_skipped(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = RunFolder.open(home / "ft").metrics()
    first, second = (line["delta_norm"][PATH] for line in lines[:2])
    base = float(np.linalg.norm(load(str(home / "model")).params[PATH]))
    budget = sorted((first, second))[0] * 0.99 / base if second <= first else (first + second) / 2 / base
    out = home / "stopped"
    with pytest.raises(SystemExit):
        main([*arguments(home, "ft", out), "--limits.edit", str(budget)])
    error = capsys.readouterr().err
    assert "over the budget of one edit" in error
    assert "--policy skip" in error
    done = RunFolder.open(out).updates
    assert done == (1 if second > first else 0)
    main(["resume", str(out), "--policy", "skip"])
    folder = RunFolder.open(out)
    assert folder.finished
    applied = [line["applied"] for line in folder.metrics()]
    assert applied[done] is False
    assert [chunk.after for chunk in folder.journal.chunks if chunk.after >= 2] == [2, 3]  # as without a stop
    assert folder.damages() == []
    assert "updates were refused" in capsys.readouterr().out


def test_what_was_rolled_back_is_not_run_again(home: Path) -> None:
    """The second update is over the budget; the first, of the same chunk, was within."""
    first, second = (line["norm"][PATH] for line in RunFolder.open(home / "ft").metrics()[:2])
    base = float(np.linalg.norm(load(str(home / "model")).params[PATH]))
    assert base < first < second
    out, budget = home / "rolled-back", str((first + second) / 2 / base)
    given = [*arguments(home, "ft", out), "--limits.total", budget, "--limits.policy", "rollback"]
    pipeline.run(parse(given).config)
    found = pipeline.trajectory(out)[0]
    assert [line["refused"] for line in found.folder.metrics()[:2]] == [[], ["over the budget of all edits"]]
    for step in (1, 2):
        assert same_bits(found.at(step), found.at(0)), step
    assert found.differences() == []


def test_a_run_that_another_process_ended_is_left_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = RunFolder.open(home / "ft")
    before = (ended.path / "journal.jsonl").read_bytes()
    stale = RunFolder(ended.path, ended.journal._replace(entries=ended.journal.entries[:-1]))
    # Batches are cut as it was recorded, not as this machine's memory would have it.
    monkeypatch.setattr(importlib.import_module("jaxedit.pipeline.prepare"), "cut_of", None)
    _, config, prepared = pipeline.trajectory(home / "ft")
    assert finish(config, stale, prepared, plan_of(config, prepared), quiet).finished
    assert (ended.path / "journal.jsonl").read_bytes() == before


def test_a_change_from_a_later_step_belongs_on_the_model_of_that_step(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, between = home / "later.safetensors", home / "memit-1"
    main(["diff", str(home / "memit"), "1", "3", "--out", str(file)])
    with pytest.raises(SystemExit):
        main(["apply", str(file), str(home / "model"), str(home / "wrong")])
    assert "belongs on a model that was edited before" in capsys.readouterr().err
    main(["at", str(home / "memit"), "1", "--out", str(between)])
    main(["apply", str(file), str(between), str(home / "right")])
    applied = load(str(home / "right")).params[PATH]
    np.testing.assert_allclose(applied, final(home / "memit")[PATH], rtol=1e-5, atol=1e-6)


def test_a_matrix_that_was_zero_has_no_growth() -> None:
    table = change_table("title", {PATH: 1.0}, {PATH: 0.0}, {PATH: 1.0})
    assert [*table.columns[3].cells] == ["–"]


def test_learning_from_text_needs_no_facts_and_goes_on_in_a_branch(home: Path) -> None:
    """The random model knows none of the facts."""
    text, out, branch = home / "text.txt", home / "text", home / "text-branch"
    text.write_text(" ".join(fact.prompt for fact in FACTS) * 9)
    given = ["run", "--editor", "pretrain", "--model", str(home / "model"), "--chunk", "2", "--count", "4"]
    given += ["--facts", str(home / "facts.jsonl"), "--text.file", str(text), "--settings.layers", "1"]
    with pytest.raises(FactError, match="give a longer text"):
        pipeline.run(parse([*given, "--out", str(out), "--text.length", "60"]).config)
    assert not out.exists()
    main([*given, "--out", str(out), "--text.length", "8"])
    folder = RunFolder.open(out)
    assert folder.finished
    assert folder.read("summary")["final"] == {}
    losses = [line["metrics"]["loss"] for line in folder.metrics()]
    assert all(np.size(loss) and np.isfinite(loss).all() for loss in losses)
    pipeline.branch(out, 2, branch)
    found, config, _ = pipeline.trajectory(branch)
    assert (found.steps, config.count, config.text.skip) == (2, 2, 2)
    assert same_bits(found.at(2), pipeline.trajectory(out)[0].at(4))


def test_changed_base_weights_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((home / "memit" / "config.json").read_text())
    weights = Path(config["model"]) / "model.safetensors"
    content = weights.read_bytes()
    changed = bytearray(content)
    changed[-4] ^= 1
    weights.write_bytes(changed)
    try:
        with pytest.raises(SystemExit):
            main(["at", str(home / "memit"), "1"])
    finally:
        weights.write_bytes(content)
    assert "was made on other weights" in capsys.readouterr().err
