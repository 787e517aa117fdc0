"""The command line end to end on a tiny random model, in a cache of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from transformers import AutoModelForCausalLM

from jaxedit import pipeline
from jaxedit.cli import main, parse
from jaxedit.data import Fact, dump_jsonl, encode_probes, load_facts
from jaxedit.data.shapes import RequestShape
from jaxedit.errors import ConfigError, RunError
from jaxedit.evaluation.edits import agreement, answer_all, branch_mask, score_all
from jaxedit.models.sources import load
from jaxedit.pipeline.plan import WORTH, equal_parts, two_shapes
from jaxedit.report.record import read_run
from tests.reference.tiny import save_tiny, tiny_llama, tiny_tokenizer

FACTS = [
    Fact(
        id=subject,
        subject=subject,
        prompt=f"The town of {subject} is located in",
        target_new=new,
        target_true=true,
        paraphrases=(f"Where is {subject}? In",),
        neighborhood=("The capital of the country is",),
        relation="place",
    )
    for subject, new, true in (
        ("Paris", "Rome", "Lyon"),
        ("Lyon", "Rome", "Paris"),
        ("Rome", "Lyon", "Paris"),
    )
]
CONFIG = """
editor = "memit"
count = 3
chunk = 2
known = false

[settings]
steps = 2
layers = [1]

[moments]
length = 32
"""


class Stopped(Exception):
    """Ends a run from within its report callback."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, facts, a configuration and a finished run; JAX keeps what it compiles in it."""
    home = tmp_path_factory.mktemp("cli")
    save_tiny(tiny_llama(torch.float32, max_position_embeddings=256), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    paths = f"model = {json.dumps(str(home / 'model'))}\nfacts = {json.dumps(str(home / 'facts.jsonl'))}\n"
    (home / "run.toml").write_text(paths + CONFIG)
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        reset_cache()
        main(["run", str(home / "run.toml"), "--out", str(home / "run")])
        yield home
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def numbers(run: Path) -> list[bytes]:
    names = ("metrics.jsonl", "summary.json", "updates/000000.safetensors", "updates/000001.safetensors")
    return [(run / name).read_bytes() for name in names if (run / name).exists()]


def test_a_run_leaves_everything_behind(home: Path) -> None:
    run = home / "run"
    for name in ("config.json", "environment.json", "facts.jsonl", "summary.json"):
        assert (run / name).stat().st_size > 0, name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["facts"] for line in lines] == [["Paris"], ["Lyon"], ["Rome"]]
    assert len(list((run / "updates").glob("*.safetensors"))) == 2
    assert {file.name for file in (run / "figures").iterdir()} == {
        "norms.png", "norms.svg", "scores.png", "scores.svg", "report.html", "SHA256SUMS",
    }  # fmt: skip
    assert any((home / "cache" / "compiled").iterdir()), "compiled programs are kept"


def test_the_same_run_again_gives_the_same_bits(home: Path) -> None:
    main(["run", str(home / "run.toml"), "--out", str(home / "again")])
    assert numbers(home / "again") == numbers(home / "run")


def test_updates_are_compiled_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many chunks, MEMIT's constant state among what they hand on."""
    with jax.log_compiles(), caplog.at_level("WARNING"):
        main(["run", str(home / "run.toml"), "--out", str(home / "chunks"), "--chunk", "1"])
    assert sum("Compiling jit(apply)" in record.getMessage() for record in caplog.records) == 1
    assert len(list((home / "chunks" / "updates").iterdir())) == 3


def stopped_run(home: Path, name: str) -> Path:
    """The run of `home` up to its first chunk of two."""

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "editing" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        pipeline.run(parse(["run", str(home / "run.toml"), "--out", str(home / name)]).config, stop)
    return home / name


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        (["--devices.memory", "1e-6"], (3, True, False)),
        pytest.param(["--devices.micro-batch", "2"], (2, False, True), marks=pytest.mark.slow),
        pytest.param(["--devices.columns", "False"], (1, False, False), marks=pytest.mark.slow),
    ],
)
def test_a_batch_in_pieces_or_without_copies_is_the_same_run_to_rounding(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    cut: tuple[int, bool, bool],
) -> None:
    norms = []
    for name, given, expected in (("whole", [], (1, False, True)), ("cut", options, cut)):
        out = tmp_path / name
        main(["run", str(home / "run.toml"), "--out", str(out), "--batch-size", "3", *given])
        found = json.loads((out / "environment.json").read_text())["cut"]
        assert (found["pieces"], found["remat"], found["columns"]) == expected
        assert ("layers computed again" in capsys.readouterr().out) == found["remat"]
        (line,) = (out / "metrics.jsonl").read_text().splitlines()
        norms.append(json.loads(line)["delta_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_resuming_a_stopped_run_gives_the_same_bits(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = stopped_run(home, "stopped")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"update": 2, "fac')
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(stopped)])
    assert "bytes that the journal does not know" in capsys.readouterr().err
    main(["report", str(stopped)])
    assert "2 of 3" in capsys.readouterr().out
    main(["resume", str(stopped)])
    main(["verify", str(stopped), "--replay"])
    assert "is whole: 3 updates in 2 chunks, finished" in capsys.readouterr().out
    assert numbers(stopped) == numbers(home / "run")


@pytest.mark.slow
def test_resuming_on_another_number_of_devices_agrees_to_1e_5(home: Path) -> None:
    stopped = stopped_run(home, "moved")
    on_devices(3, "resume", str(stopped))
    require_agreement(stopped, home / "run")


@pytest.mark.slow
def test_a_run_resumed_over_a_mesh_agrees_to_1e_5(home: Path) -> None:
    stopped, whole = (home / name for name in ("stopped-pairs", "pairs"))
    pairs = ("run", str(home / "run.toml"), "--batch-size", "2", "--chunk", "1", "--out")
    main([*pairs, str(whole)])

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "editing" and done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        pipeline.run(parse([*pairs, str(stopped)]).config, stop)
    on_devices(4, "resume", str(stopped), "--way", "mesh", "--tensor", "2")
    require_agreement(stopped, whole)


@pytest.mark.slow
def test_dense_updates_over_a_mesh_are_found_again_on_as_many_devices(home: Path) -> None:
    out = home / "dense"
    chosen = ("--editor", "ft", "--batch-size", "2", "--devices.way", "mesh", "--out", str(out))
    on_devices(2, "run", str(home / "run.toml"), *chosen)
    on_devices(2, "at", str(out), "1")
    with pytest.raises(RunError, match=r"made on 2 devices, .* here are 1"):
        pipeline.trajectory(out)[0].at(1)
    assert pipeline.trajectory(out)[0].at(2)


def test_fewer_facts_an_update_than_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 facts an update cannot be divided among 2 devices"):
        equal_parts(1, 2)
    assert [equal_parts(size, 4) for size in (4, 5, 8)] == [4, 8, 8]


def test_long_runs_have_a_second_program_for_short_facts() -> None:
    short, long = RequestShape(P=4, S=3, T=2), RequestShape(P=8, S=6, T=3)
    assert two_shapes([*[short] * WORTH, long]) == (RequestShape(P=8, S=3, T=2), long)
    assert two_shapes([*[short] * (WORTH - 2), long]) == (long, long)


def on_devices(count: int, *arguments: str) -> None:
    """The command in a process of its own: the number of devices is fixed once JAX has started."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "jaxedit.cli", *arguments, "--no-compile-cache"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def require_agreement(one: Path, other: Path) -> None:
    (found, _, _), (expected, _, _) = (pipeline.trajectory(run) for run in (one, other))
    last = expected.steps
    assert found.steps == last
    for path, matrix in expected.at(last).items():
        change = matrix - expected.at(0)[path]
        difference = found.at(last)[path] - matrix
        assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(change)


def test_export_is_the_edited_model_for_transformers(home: Path) -> None:
    out = home / "exported"
    main(["export", str(home / "run"), str(out)])
    base, exported = load(str(home / "model")), load(str(out))
    changed = {p for p, w in base.params.items() if not np.array_equal(w, exported.params[p])}
    assert changed == {"layers.1.mlp.down.kernel"}
    summary = json.loads((home / "run" / "summary.json").read_text())
    norm = np.linalg.norm(np.asarray(exported.params["layers.1.mlp.down.kernel"], np.float64))
    assert norm == pytest.approx(summary["final_norm"]["layers.1.mlp.down.kernel"], rel=1e-6)

    tokens = np.arange(3, 43)[None]
    decoder = exported.model.bind(exported.params)
    position, branch = np.arange(40)[None], np.zeros((1, 40), np.int32)
    hidden = decoder.embed(tokens, position)
    layers = range(exported.model.config.n_layers)
    hidden = decoder.run(hidden, layers, position=position, mask=branch_mask(branch))[0]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(out)(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(decoder.logits(hidden), expected, atol=1e-5)


def test_agreement_in_the_summary_is_that_of_both_models(home: Path) -> None:
    out = home / "exported-to-compare"
    main(["export", str(home / "run"), str(out)])
    facts, said = load_facts(str(home / "run" / "facts.jsonl")), []
    probes = encode_probes(facts, load(str(out)).tokenizer, max_length=64)
    for path in (home / "model", out):
        one = load(str(path))
        said.append(answer_all(one.model, one.params, probes)[1])
    expected = np.nanmean(agreement(*said, probes))
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert summary["final"]["NG"] == pytest.approx(expected, abs=1e-9)
    assert "NG" not in summary["unedited"]


def test_the_summary_has_every_fact_s_own_scores(home: Path) -> None:
    summary = json.loads((home / "run" / "summary.json").read_text())
    out = home / "exported-to-score"
    main(["export", str(home / "run"), str(out)])
    facts = load_facts(str(home / "run" / "facts.jsonl"))
    for name, folder in (("unedited", home / "model"), ("final", out)):
        one, found = load(str(folder)), summary["by_fact"][name]
        expected = score_all(one.model, one.params, encode_probes(facts, one.tokenizer, max_length=64))
        assert found.keys() >= expected.keys()
        for score, values in expected.items():
            listed = np.array(found[score], float)
            np.testing.assert_allclose(listed, values, atol=1e-5)
        assert summary[name]["EM"] == pytest.approx(np.nanmean(np.array(found["rewrite_magnitude"], float)))
    read = read_run(home / "run").final_scores
    assert read.keys() == summary["by_fact"]["final"].keys()
    for score, values in read.items():
        np.testing.assert_array_equal(values, np.array(summary["by_fact"]["final"][score], float))


def test_report_compares_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "run", home / "copy")
    main(["report", str(home / "run"), str(home / "copy"), "--out", str(home / "both"), "--tensorboard"])
    assert len(list((home / "both").iterdir())) == 6
    assert {folder.name for folder in (home / "both" / "tensorboard").iterdir()} == {"run", "copy"}
    assert "right after" in capsys.readouterr().out


def test_report_writes_the_formats_asked_for_and_no_page(home: Path) -> None:
    shutil.copytree(home / "run", home / "published", ignore=shutil.ignore_patterns("figures"))
    command = ["report", str(home / "published"), "--formats", "pdf", "svg", "--no-page"]
    written = []
    for _ in range(2):
        main(command)
        written.append({file.name: file.read_bytes() for file in (home / "published" / "figures").iterdir()})
    assert written[0].keys() == {"norms.pdf", "norms.svg", "scores.pdf", "scores.svg", "SHA256SUMS"}
    assert written[0] == written[1]
    assert written[0]["norms.pdf"].startswith(b"%PDF")


def test_options_come_before_the_file(home: Path) -> None:
    config = parse(["run", str(home / "run.toml"), "--chunk", "5", "--settings.steps", "7"]).config
    assert (config.chunk, config.settings.steps) == (5, 7)
    assert (config.count, config.settings.layers, config.known) == (3, (1,), False)


def test_facts_are_counted_and_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["facts", str(home / "facts.jsonl"), "--out", str(home / "written.jsonl"), "--limit", "2"])
    assert load_facts(home / "written.jsonl") == FACTS[:2]
    assert "place" in capsys.readouterr().out


def test_editors_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["editors"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("memit", "r-rome", "ft-l"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --editor memmit", "unknown editor 'memmit'. Did you mean 'memit'"),
        ("run --model smollm-135m", "unknown model 'smollm-135m'. Did you mean 'smollm2-135m'?"),
        ("run {home}/bad.toml", "unknown setting 'learning_rat'. Did you mean 'learning_rate'"),
        ("run {home}/run.toml --settings.layers 9", "layer 9 is out of range: the model has layers 0 to 3"),
        ("run {home}/run.toml --editor ft --settings.lam 3", "editor 'ft': unknown setting 'lam'"),
        ("run {home}/run.toml --count 4", "has 3 facts but 4 are asked for"),
        ("run {home}/absent.toml", "there is no configuration file"),
        ("run {home}/run.toml --out {home}/run", "exists already. Continue it with `jaxedit resume"),
        ("run {home}/run.toml --count 0", "count is 0; it must be at least 1"),
        ("resume {home}/model", "is not a run folder"),
        ("at {home}/run 4", "has steps 0 to 3, there is no step 4"),
        ("diff {home}/run 2 1", "goes from an earlier to a later step"),
        ("undo {home}/run 3 --out {home}/undone", "has no update 3: there are 3, from 0 to 2"),
        ("apply {home}/facts.jsonl {home}/model {home}/applied", "is no change of a model"),
        ("branch {home}/run 3 {home}/branched", "has no facts left after step 3"),
        ("run {home}/run.toml --limits.edit 0", "limits.edit is 0.0; it must be above 0"),
        ("report", "no run is named"),
        ("export {home}/run {home}/model", "exists already: choose another folder"),
        ("facts nothing.jsonl", "unknown set of facts"),
        ("facts {home}/facts.jsonl --out {home}/facts.jsonl", "exists already: choose another file"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: str,
    message: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)  # where a run would write to by default
    (home / "bad.toml").write_text("[settings]\nlearning_rat = 0.1\n")
    before = sorted(home.iterdir())
    with pytest.raises(SystemExit) as stop:
        main([part.format(home=home) for part in arguments.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert "Traceback" not in error
    assert sorted(home.iterdir()) == before, "nothing is left behind, nothing is lost"


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(ConfigError):
        main(["run", "--editor", "memmit", "--debug"])
