"""A run goes on with what it was begun with: model, tokenizer, texts, devices; what another seed draws anew."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jaxedit import pipeline
from jaxedit.cli import _devices, main, parse
from jaxedit.data import dump_jsonl, load_facts
from jaxedit.data.known import as_known, load_known
from jaxedit.errors import ConfigError, FactError, RunError
from jaxedit.models.sources import load
from jaxedit.pipeline import DeviceConfig, RunConfig, choose_facts, inputs, quiet
from jaxedit.pipeline.found import ability_of, free, write_ability
from jaxedit.pipeline.inputs import other_versions, path_digest
from jaxedit.pipeline.prepare import versions
from jaxedit.pipeline.train import TrainRun, split_facts
from jaxedit.pipeline.warm import other_facts
from jaxedit.pipeline.watch_config import AbilityConfig
from jaxedit.trajectory.store import RunFolder
from tests.commands.test_cli import FACTS
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_tokenizer

GIVEN = ["--editor", "memit", "--count", "2", "--chunk", "1", "--no-known", "--settings.layers", "1"]
TEXT = "The town of Paris is located in the country. " * 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, facts, a text, and a run that was stopped before its first chunk."""
    home = tmp_path_factory.mktemp("inputs")
    save_tiny(tiny_gpt2(torch.float32), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    (home / "text.txt").write_text(TEXT)
    given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl"), *GIVEN]
    given += ["--moments.text", str(home / "text.txt"), "--moments.length", "32", "--devices.memory", "40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        config = parse([*given, "--out", str(home / "run")]).config  # type: ignore[union-attr]
        pipeline.run(config, stop=lambda: True)
        yield home


def resumed(home: Path) -> None:
    assert not pipeline.resume(home / "run", stop=lambda: True).finished


@pytest.mark.parametrize(
    ("name", "before", "after", "match"),
    [
        ("text.txt", "town", "city", r"another moments.text than .*text.txt is now: give back"),
        ("model/tokenizer.json", '"Ġ', '"Ĝ', r"another tokenizer than that in .*model: give back"),
        (
            "model/config.json",
            '"layer_norm_epsilon": 1e-05',
            '"layer_norm_epsilon": 1e-04',
            "norm_eps = 1e-05",
        ),
    ],
)
def test_a_run_does_not_go_on_with_something_else(
    home: Path, name: str, before: str, after: str, match: str
) -> None:
    file = home / name
    whole = file.read_text()
    assert before in whole
    resumed(home)
    file.write_text(whole.replace(before, after))
    try:
        with pytest.raises(RunError, match=match):
            resumed(home)
    finally:
        file.write_text(whole)
    resumed(home)


def test_other_versions_are_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.open(home / "run")
    assert other_versions(folder) == {}
    monkeypatch.setattr(inputs, "versions", lambda: versions() | {"jax": "0.0.1"})
    assert other_versions(folder) == {"jax": (versions()["jax"], "0.0.1")}


def test_a_text_that_is_gone_is_named(home: Path) -> None:
    moved = (home / "text.txt").rename(home / "elsewhere.txt")
    with pytest.raises(Exception, match=r"text\.txt"):
        resumed(home)
    moved.rename(home / "text.txt")
    resumed(home)


def test_a_folder_is_known_by_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text(text)
    first = path_digest(tmp_path)
    assert path_digest(tmp_path) == first
    (tmp_path / "b").rename(tmp_path / "c")
    assert path_digest(tmp_path) != first
    with pytest.raises(RunError, match="there is no file or folder"):
        path_digest(tmp_path / "d")


def test_a_random_order_is_drawn_by_the_seed(home: Path) -> None:
    checkpoint = load(str(home / "model"))
    base = RunConfig(facts=str(home / "facts.jsonl"), count=3, known=False)

    def ids(**changes: object) -> list[str]:
        config = dataclasses.replace(base, **changes)  # type: ignore[arg-type]
        return [fact.id for fact in choose_facts(config, checkpoint, quiet)]

    assert ids() == ids(seed=1) == [fact.id for fact in FACTS]
    orders = {tuple(ids(order="random", seed=seed)) for seed in range(8)}
    assert ids(order="random", seed=3) == ids(order="random", seed=3)
    assert len(orders) > 2
    assert {frozenset(order) for order in orders} == {frozenset(ids())}
    assert len(ids(order="random", count=2)) == 2


def test_facts_that_cannot_be_used_stop_a_file_or_are_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads facts."""
    bad = dataclasses.replace(FACTS[0], id="bad", subject="Nowhere")
    file, cleaned = tmp_path / "bad.jsonl", tmp_path / "cleaned.jsonl"
    dump_jsonl([bad, *FACTS], file)
    run = RunConfig(facts=str(file), count=2, known=False, warm_up=1)
    training = TrainRun(facts=str(file), count=2, held_out=1)
    with pytest.raises(FactError, match=r"1 fact\(s\) cannot be used.*--skip-invalid"):
        choose_facts(run, load(str(home / "model")), quiet)
    run, training = (dataclasses.replace(one, skip_invalid=True) for one in (run, training))
    assert choose_facts(run, load(str(home / "model")), quiet) == FACTS[:2]
    assert other_facts(run, FACTS[:2]) == FACTS[2:]
    assert sorted(fact.id for part in split_facts(training) for fact in part) == ["Lyon", "Paris", "Rome"]
    assert load_known(file, skip_invalid=True) == [as_known(fact) for fact in FACTS]
    main(["facts", str(file), "--skip-invalid", "--out", str(cleaned), "--limit", "2"])
    assert load_facts(cleaned) == FACTS[:2]
    assert "Of 4 facts" in (said := capsys.readouterr().out)
    assert "1 cannot be used and is left out" in said


def test_a_branch_with_another_seed_draws_contexts_anew(home: Path) -> None:
    parent = pipeline.trajectory(home / "run")[2]
    contexts = {}
    for seed in (0, 7):
        out = home / f"branch-{seed}"
        pipeline.branch(home / "run", 0, out, {"seed": seed}, stop=lambda: True)
        environment = json.loads((out / "environment.json").read_text())
        contexts[seed] = tuple(environment["contexts"])
        assert [json.loads(line)["id"] for line in (out / "facts.jsonl").open()] == ["Paris", "Lyon"]
    assert contexts[0] == parent.contexts
    assert contexts[7] != parent.contexts


def test_other_devices_leave_what_was_not_named_as_it_was(home: Path) -> None:
    command = parse(["resume", str(home / "run"), "--way", "mesh", "--tensor", "1"])
    assert _devices(command) == DeviceConfig(way="mesh", memory=40)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belong to a new --way"):
        _devices(parse(["resume", str(home / "run"), "--tensor", "2"]))  # type: ignore[arg-type]


def test_what_someone_measured_is_not_taken_away(home: Path, tmp_path: Path) -> None:
    """Only what a stop left that asked the very same; another folder's place is taken by the next name."""
    run = shutil.copytree(home / "run", tmp_path / "run")
    stored, folder, config = pipeline.trajectory(run)[0].folder, ability_of(run), AbilityConfig()
    assert free(folder, stored, (0,), config) == folder
    write_ability(folder, stored, (0,), config, [])
    assert free(folder, stored, (0,), config) == folder
    assert not folder.exists()
    write_ability(folder, stored, (0,), config, [])
    assert free(folder, stored, (0, 2), config) == folder.with_name("run-ability-watched")
    assert (folder / "ability.json").exists()


def test_an_error_of_the_system_is_told_in_a_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "no" / "such" / "folder.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(["facts", str(home / "facts.jsonl"), "--out", str(out)])
    assert stopped.value.code == 2
    assert str(out) in capsys.readouterr().err
