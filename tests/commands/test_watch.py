"""What is measured while a run goes on is what is found in it afterwards."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxedit import pipeline
from jaxedit.cli import main, parse
from jaxedit.data import dump_jsonl
from jaxedit.errors import ConfigError, RunError
from jaxedit.pipeline import RunConfig, check, quiet
from jaxedit.pipeline.plan import plan_of, spans
from jaxedit.pipeline.watch import Watcher
from jaxedit.pipeline.watch_config import Watch
from tests.commands.test_measure import FACTS
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_tokenizer

WATCHED = ("--watch.measure", "--watch.ability", "--watch.every", "2", "--watch.measures.k", "2")
MATRICES = ("--weights", "size", "drift")
VECTORS = (*MATRICES, "--activations", "shift", "--vectors", "mlp", "--prompts", "4")
STEPS = ("--steps", "0", "2", "3")


class Stopped(Exception):
    """Ends a run from within its report callback."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("watch")
    save_tiny(tiny_gpt2(torch.float32), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        yield home


def command(home: Path, editor: str, asked: tuple[str, ...] = MATRICES) -> list[str]:
    given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl"), "--count", "3"]
    given += ["--out", str(home / editor), "--editor", editor, "--chunk", "1", "--no-known"]
    given += ["--settings.layers", "1", "--settings.steps", "2", "--moments.length", "32"]
    measures = [option.replace("--", "--watch.measures.") for option in asked]
    return [*given, *WATCHED, *measures]


@pytest.mark.parametrize(
    ("editor", "asked"), [("memit", MATRICES), pytest.param("ft", VECTORS, marks=pytest.mark.slow)]
)
def test_a_watched_run_that_was_stopped_leaves_what_is_found_in_it_later(
    home: Path, editor: str, asked: tuple[str, ...]
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "looking at step 2" and done == 0:  # the chunk is on the disk, and was not looked at
            raise Stopped

    with pytest.raises(Stopped):
        pipeline.run(parse(command(home, editor, asked)).config, stop)
    assert not (home / f"{editor}-measures").exists()
    look = home / editor / "watch" / "000000.json"
    look.write_bytes(look.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"000000.json is damaged .* remove it, and `jaxedit resume"):
        pipeline.resume(home / editor)
    look.unlink()
    main(["resume", str(home / editor)])
    run, found, later = home / editor, home / f"{editor}-measures", home / f"{editor}-later"
    main(["measure", str(run), "--out", str(later / "measures"), *STEPS, "--k", "2", *asked])
    main(["ability", str(run), "--out", str(later / "ability"), *STEPS])
    assert same(found, later / "measures", "measures.jsonl")
    assert same(home / f"{editor}-ability", later / "ability", "ability.json")
    columns, expected = (np.load(folder / "measures.npz") for folder in (found, later / "measures"))
    assert set(columns["model"]) == {"edited", "random"}
    for name in expected:
        np.testing.assert_array_equal(columns[name], expected[name])
    main(["report", str(run)])
    main(["verify", str(run)])


def test_the_model_looked_at_is_the_one_that_would_be_used(home: Path) -> None:
    """PRUNE restrains the total change at the end: a look at any step is at the restrained model."""
    strong = ("--settings.lam", "1e-4", "--settings.clamp", "90", "--settings.learning-rate", "9")
    run, later = home / "pruned", home / "pruned-later"
    pipeline.run(
        replace(parse([*command(home, "memit"), *strong]).config, out=str(run), transforms=("prune",))
    )
    looked = json.loads((run / "watch" / "000003.json").read_text())["measures"]
    norms = {
        row["where"]: row["value"]
        for row in looked
        if (row["model"], row["measure"]) == ("edited", "frobenius")
    }
    left = json.loads((run / "summary.json").read_text())["final_norm"]
    for path, matrix in pipeline.trajectory(run)[0].at(3).items():
        assert norms[path] == pytest.approx(left[path], rel=1e-6)
        assert norms[path] < 0.9 * float(np.linalg.norm(matrix))
    main(["measure", str(run), "--out", str(later), *STEPS, "--k", "2", *MATRICES])
    assert same(home / "pruned-measures", later, "measures.jsonl")
    found, config, prepared = pipeline.trajectory(run)
    watcher = Watcher(config, prepared, found.folder, plan_of(config, prepared), quiet)
    look = run / "watch" / "000002.json"
    before = look.read_bytes()
    look.unlink()
    watcher.catch_up()  # the memory at step 2 was not kept: updates are run once more
    assert look.read_bytes() == before


def test_chunks_end_where_the_run_is_looked_at() -> None:
    """Also after an update at which the run stopped, here the fourth."""
    assert list(spans(3, 25, 10)) == [(3, 7), (10, 10), (20, 5)]


def same(found: Path, expected: Path, name: str) -> bool:
    return (found / name).read_bytes() == (expected / name).read_bytes()


def test_room_is_asked_for_before_anything_is_loaded(home: Path) -> None:
    (home / "taken-measures").mkdir()
    with pytest.raises(ConfigError, match="taken-measures exists already"):
        pipeline.run(
            RunConfig(out=str(home / "taken"), model="no such model", watch=Watch(measure=True, every=10))
        )


@pytest.mark.parametrize(
    ("watch", "message"),
    [
        (Watch(measure=True, every=15), "watch.every is 15; it must be a multiple of chunk, 10"),
        (Watch(ability=True, every=0), "every is 0"),
    ],
)
def test_what_cannot_be_watched_is_refused(watch: Watch, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(RunConfig(watch=watch))
