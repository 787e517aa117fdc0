"""Sweeps: every combination once, each a run of its own, one table of all."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jaxedit import pipeline
from jaxedit.cli import main
from jaxedit.data import dump_jsonl
from jaxedit.errors import ConfigError
from jaxedit.pipeline import RunConfig
from jaxedit.pipeline.sweep import points, read_grid, read_options, sweep
from jaxedit.trajectory.store import RunFolder
from tests.commands.test_cli import CONFIG, FACTS
from tests.reference.tiny import save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a run on a tiny model, in a cache of its own."""
    home = tmp_path_factory.mktemp("sweep")
    save_tiny(tiny_llama(torch.float32, max_position_embeddings=256), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    paths = f"model = {json.dumps(str(home / 'model'))}\nfacts = {json.dumps(str(home / 'facts.jsonl'))}\n"
    (home / "run.toml").write_text(paths + CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        yield home / "run.toml"


def test_a_grid_is_read_as_toml_with_names_and_layers() -> None:
    found = read_grid(["seed=0,1", "editor=memit,r-rome", "settings.layers=8,6-10", "settings.lam=1e3"])
    assert found == {
        "seed": [0, 1],
        "editor": ["memit", "r-rome"],
        "settings.layers": [[8], [6, 7, 8, 9, 10]],
        "settings.lam": [1000.0],
    }


@pytest.mark.parametrize("text", ["seed", "seed=", "=3"])
def test_a_grid_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not SETTING=VALUE"):
        read_grid([text])


def test_options_are_values_or_texts_with_their_commas() -> None:
    found = read_options(["slurm_partition=gpu,gpu2", "timeout_min=600", "slurm_constraint=a=b"])
    assert found == {"slurm_partition": "gpu,gpu2", "timeout_min": 600, "slurm_constraint": "a=b"}
    with pytest.raises(ConfigError, match="is not NAME=VALUE"):
        read_options(["slurm_partition"])


def test_points_are_all_combinations_in_folders_of_their_own() -> None:
    found = points(RunConfig(out="sweep"), read_grid(["seed=0,1", "settings.layers=8,6-10"]))
    assert [(point.config.seed, point.config.settings.layers) for point in found] == [
        (0, (8,)), (0, (6, 7, 8, 9, 10)), (1, (8,)), (1, (6, 7, 8, 9, 10)),
    ]  # fmt: skip
    assert [point.config.out for point in found] == [
        "sweep/seed-0_layers-8", "sweep/seed-0_layers-6-10", "sweep/seed-1_layers-8", "sweep/seed-1_layers-6-10",
    ]  # fmt: skip


def test_without_a_grid_there_is_one_run() -> None:
    (point,) = points(RunConfig(out="sweep", seed=3), {})
    assert point.config == RunConfig(out="sweep/run", seed=3)


@pytest.mark.parametrize("grid", [["seed=0,0"], ["model=a/b,a-b"]])
def test_two_runs_of_one_folder_are_refused(grid: list[str]) -> None:
    with pytest.raises(ConfigError, match="two runs would be"):
        points(RunConfig(), read_grid(grid))


@pytest.mark.parametrize("name", ["sede", "settings.lamb", "limits.edit.more", "nothing.at"])
def test_a_setting_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting '{name}'"):
        points(RunConfig(), {name: [1]})


def test_a_sweep_makes_every_run_once_and_tells_which_failed(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = base.parent / "sweep"
    command = [
        "sweep",
        str(base),
        "--out",
        str(out),
        "--count",
        "2",
        "--grid",
        "settings.layers=1,99",
        "seed=0,1",
    ]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    said = capsys.readouterr()
    assert "2 of 4 runs failed" in said.err
    assert "layer 99 is out of range" in said.err
    rows = json.loads((out / "sweep.json").read_text())
    assert [(row["settings.layers"], row["seed"], row["error"] is None) for row in rows] == [
        ([1], 0, True), ([1], 1, True), ([99], 0, False), ([99], 1, False),
    ]  # fmt: skip
    assert rows[0]["growth"] > 0
    assert set(rows[0]["final"]) >= {"ES", "PS", "NS", "S"}

    written = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    assert len(written) == 2
    main([*command[:-2], "settings.layers=1", "seed=0,1"])
    assert {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")} == written
    assert [row["run"] for row in json.loads((out / "sweep.json").read_text())] == [
        row["run"] for row in rows
    ]


def test_sigterm_ends_a_sweep_once_the_chunk_at_work_is_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(stage: str, done: int, total: int) -> None:
        if stage == "editing" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    module = importlib.import_module("jaxedit.pipeline.sweep")
    monkeypatch.setattr(module, "run", lambda config, stop: pipeline.run(config, report, stop))
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(base), "--grid", "seed=0,1", "--out", str(tmp_path)])
    assert ended.value.code == 143
    assert RunFolder.open(tmp_path / "seed-0").updates == 2
    assert not (tmp_path / "seed-1").exists()


@pytest.mark.slow
def test_processes_of_their_own_make_runs_and_say_why_one_failed(base: Path) -> None:
    pytest.importorskip("submitit")
    out = base.parent / "local"
    command = [
        sys.executable,
        "-m",
        "jaxedit.cli",
        "sweep",
        str(base),
        "--out",
        str(out),
        "--engine",
        "local",
    ]
    command += ["--jobs", "2", "--count", "2", "--grid", "seed=3", "settings.layers=1,99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "1 of 2 runs failed" in done.stderr
    assert "layer 99 is out of range" in done.stderr
    assert json.loads((out / "seed-3_layers-1" / "summary.json").read_text())["edits"] == 2


def test_an_engine_that_is_not_there_is_refused(base: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="engine 'local'"):
        list(sweep(points(RunConfig(out=str(base.parent / "none")), {}), "local", options={"no_such": 1}))
