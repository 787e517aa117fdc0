"""Facts that an editor's moments count before the first edit, without editing them."""

from pathlib import Path

import pytest
import torch

from jaxedit import pipeline
from jaxedit.cli import main, parse
from jaxedit.data import dump_jsonl, encode_requests
from jaxedit.editors.transforms.chain import Chained
from jaxedit.errors import ConfigError, FactError
from jaxedit.trajectory.store import RunFolder
from tests.cases import relative
from tests.commands.test_cli import FACTS
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_tokenizer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny(tiny_gpt2(torch.float32), tiny_tokenizer(), tmp_path / "model")
    dump_jsonl(FACTS, tmp_path / "facts.jsonl")
    monkeypatch.setenv("JAXEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def arguments(home: Path, *more: str) -> list[str]:
    given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl"), "--no-known"]
    return [*given, "--out", str(home / "run"), "--count", "1", "--settings.layers", "1", *more]


def test_the_first_edit_finds_the_moments_of_the_other_facts(home: Path) -> None:
    chosen = ("--editor", "ultraedit", "--warm-up", "2", "--transforms", "rect:0.9")
    main(arguments(home, *chosen))
    found, _, prepared = pipeline.trajectory(home / "run")
    editor, params = prepared.editor, prepared.params
    cold = editor.init(params)
    begun = RunFolder.open(home / "run").restore(0, "state", cold)
    assert isinstance(begun, Chained)
    assert editor.observe is not None
    others = encode_requests(FACTS[1:], prepared.checkpoint.tokenizer, max_length=64)
    expected = editor.observe(params, cold, others)
    (here,), (there,) = (state.editor.running.values() for state in (begun, expected))
    assert int(here.total) == int(there.total) > 0
    assert relative(here.squares, there.squares) <= 1e-5
    assert found.folder.metrics()[0]["facts"] == ["Paris"]
    main(["verify", str(home / "run"), "--replay"])
    pipeline.branch(home / "run", 1, home / "branch", {"editor": "ft-l"})  # which has no warm-up
    assert pipeline.trajectory(home / "branch")[1].warm_up == 0


def test_too_few_facts_and_editors_without_moments_are_named(home: Path) -> None:
    with pytest.raises(FactError, match="has 2 facts beside those to edit but warm_up asks for 3"):
        pipeline.run(parse(arguments(home, "--editor", "ultraedit", "--warm-up", "3")).config)
    with pytest.raises(ConfigError, match="'memit' has no moments of facts to warm up"):
        pipeline.run(parse(arguments(home, "--warm-up", "2")).config)
