"""Measures of stored runs: the numbers of the matrices themselves, and of transformers' own hidden states."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
import torch
from transformers import AutoModelForCausalLM

from jaxedit import pipeline
from jaxedit.cli import main
from jaxedit.data import Fact, dump_jsonl
from jaxedit.diagnostics.leading import Leading, leading
from jaxedit.diagnostics.meanings import ACTIVATION_MEASURES, PATH_MEASURES, WEIGHT_MEASURES
from jaxedit.errors import ConfigError, RunError
from jaxedit.pipeline.growth_record import growth_record
from jaxedit.pipeline.measure import measures_at
from jaxedit.pipeline.measured import Row
from jaxedit.pipeline.spread import spread
from jaxedit.pipeline.watch_config import MeasureConfig
from jaxedit.pipeline.ways import path_of_run, path_rows
from jaxedit.trajectory.guard import Guard
from jaxedit.trajectory.replay import Trajectory
from jaxedit.trajectory.store import RunFolder
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_tokenizer
from tests.reference.vectors import vectors
from tests.trajectory.made import SHAPES, Made, drawn, make
from tests.trajectory.synthetic import write_run

PATH = "layers.1.mlp.down.kernel"
FACTS = [
    Fact(
        id=subject,
        subject=subject,
        prompt=f"The town of {subject} is located in",
        target_new=new,
        target_true="Lyon",
        neighborhood=(f"The capital of the country {subject} is", "The famous tower is located in"),
        relation="place",
    )
    for subject, new in zip(
        ("Paris", "Rome", "Italy", "English", "Eiffel", "Danielle"), ("Rome", "jazz") * 3, strict=True
    )
]
EVERYTHING = MeasureConfig(
    weights=("size", "drift", "leading", "subspace", "spectrum"),
    activations=("shift", "subspace"),
    vectors=("mlp", "residual"),
    k=2,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, facts, and two finished runs: low-rank updates and dense ones."""
    home = tmp_path_factory.mktemp("measure")
    save_tiny(tiny_gpt2(torch.float32), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEDIT_CACHE", str(home / "cache"))
        patch.setenv("JAXEDIT_COMPILE_CACHE", "0")
        for editor, more in (
            ("memit", ["--moments.length", "32"]),
            ("ft", ["--settings.learning-rate", "1e-3"]),
        ):
            given = ["run", "--model", str(home / "model"), "--facts", str(home / "facts.jsonl")]
            given += ["--out", str(home / editor), "--editor", editor, "--count", "6", "--chunk", "3"]
            given += ["--batch-size", "2", "--no-score"]
            main([*given, "--no-known", "--settings.layers", "1", "--settings.steps", "2", *more])
        yield home


@pytest.fixture(scope="module")
def rows(home: Path) -> list[Row]:
    """All measures of the low-rank run, before the first and after the last update."""
    return list(measures_at(home / "memit", (0, 3), EVERYTHING))


def value(
    rows: list[Row], step: int, measure: str, where: str = PATH, model: str = "edited", **more: str
) -> float:
    found = [
        row.value
        for row in rows
        if (row.step, row.measure, row.where, row.model) == (step, measure, where, model)
        and all(getattr(row, name) == wanted for name, wanted in more.items())
    ]
    assert len(found) == 1, (step, measure, where, model, more)
    return found[0]


def test_matrices_are_those_of_the_steps(home: Path, rows: list[Row]) -> None:
    found, _, _ = pipeline.trajectory(home / "memit")
    first, last = (np.asarray(found.at(step)[PATH], np.float64) for step in (0, 3))
    norm, values = np.linalg.norm, scipy.linalg.svdvals(last)
    assert value(rows, 0, "frobenius") == pytest.approx(norm(first))
    assert value(rows, 3, "frobenius") == pytest.approx(norm(last))
    assert value(rows, 3, "growth") == pytest.approx(norm(last) / norm(first))
    assert value(rows, 3, "relative_distance") == pytest.approx(norm(last - first) / norm(first))
    assert value(rows, 3, "spectral") == pytest.approx(values[0])
    assert value(rows, 3, "nuclear") == pytest.approx(values.sum())
    old, new = (np.linalg.svd(w)[0][:, :2] for w in (first, last))
    assert value(rows, 3, "input_angle") == pytest.approx(
        scipy.linalg.subspace_angles(old, new).max(), abs=1e-6
    )
    assert value(rows, 0, "input_angle") == pytest.approx(0, abs=1e-6)


def test_the_way_is_that_of_the_recorded_matrices(home: Path, rows: list[Row]) -> None:
    found, _, _ = pipeline.trajectory(home / "memit")
    matrices = [np.asarray(found.at(step)[PATH], np.float64) for step in range(4)]
    lines = found.folder.metrics()
    for step in (1, 2, 3):
        change = matrices[step] - matrices[step - 1]
        assert value(rows, step, "path_norm") == pytest.approx(lines[step - 1]["norm"][PATH], rel=1e-6)
        assert value(rows, step, "path_step") == pytest.approx(lines[step - 1]["delta_norm"][PATH], rel=1e-5)
        cosine = (
            (matrices[step - 1] * change).sum() / np.linalg.norm(matrices[step - 1]) / np.linalg.norm(change)
        )
        assert value(rows, step, "path_alignment") == pytest.approx(cosine, abs=1e-5)
        left, _, right = np.linalg.svd(matrices[0])
        read, wrote = left[:, :2].T @ change, change @ right[:2].T
        for side, part in (("inputs", read), ("outputs", wrote), ("both", left[:, :2].T @ wrote)):
            share = np.linalg.norm(part) ** 2 / np.linalg.norm(change) ** 2
            assert value(rows, step, f"path_step_in_{side}_subspace") == pytest.approx(
                share, rel=1e-3, abs=1e-6
            )


def test_vectors_are_those_of_the_exported_model(home: Path, rows: list[Row]) -> None:
    """The change of the MLP's output at the subject's last token, by transformers on the model of each step."""
    norms = {}
    for step in (0, 3):
        main(["at", str(home / "memit"), str(step), "--out", str(home / f"memit-{step}")])
        model = AutoModelForCausalLM.from_pretrained(home / f"memit-{step}", dtype=torch.float64).eval()
        tokenizer = tiny_tokenizer()
        outputs = []
        for fact in FACTS:
            before = fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]
            outputs.append(vectors(model, tokenizer(before)["input_ids"])["mlp"][1][-1].numpy())
        norms[step] = np.linalg.norm(outputs, axis=1).mean()
    where = {"where": "layers.1.mlp", "prompts": "edited", "position": "subject_last"}
    assert value(rows, 3, "norm_before", **where) == pytest.approx(norms[0], rel=1e-5)
    assert value(rows, 3, "norm_after", **where) == pytest.approx(norms[3], rel=1e-5)
    assert norms[0] != pytest.approx(norms[3], rel=1e-3), "the edits can be seen"
    below = where | {"where": "layers.0.residual"}
    assert value(rows, 3, "change", **below) == pytest.approx(0, abs=1e-6), (
        "nothing changes before the edited layer"
    )
    assert value(rows, 3, "change", **where) > 0.01
    assert {row.prompts for row in rows} == {"", "edited", "neighborhood"}


def test_the_null_model_has_a_change_of_the_same_norm(rows: list[Row]) -> None:
    distances = [value(rows, 3, "distance", model=model) for model in ("edited", "random")]
    assert distances[0] == pytest.approx(distances[1], rel=1e-5)
    assert value(rows, 3, "cosine", model="random") != value(rows, 3, "cosine")
    where = {"where": "layers.1.mlp", "prompts": "edited", "position": "subject_last"}
    changes = [value(rows, 3, "change", model=model, **where) for model in ("edited", "random")]
    assert min(changes) > 0
    assert changes[0] != pytest.approx(changes[1], rel=1e-3)
    assert not [row for row in rows if row.model == "random" and row.step == 0]


def test_every_number_has_a_name_with_a_meaning(rows: list[Row]) -> None:
    assert {row.measure for row in rows} <= {*WEIGHT_MEASURES, *PATH_MEASURES, *ACTIVATION_MEASURES}
    keys = [row[:-1] for row in rows]
    assert len(keys) == len(set(keys)), "no number is there twice"
    assert not any(np.isnan(row.value) for row in rows)


def test_the_command_writes_tables(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["measure", str(home / "memit"), "--points", "4", "--k", "2", "--null", "spectrum"])
    out = capsys.readouterr().out
    assert PATH in out
    assert "After 3 updates" in out
    folder = home / "memit-measures"
    lines = [json.loads(line) for line in (folder / "measures.jsonl").read_text().splitlines()]
    table = np.load(folder / "measures.npz")
    assert set(table) == set(lines[0])
    assert len(table["value"]) == len(lines)
    assert sorted({line["step"] for line in lines}) == [0, 1, 2, 3]
    of_norms = (table["measure"] == "frobenius") & (table["model"] == "edited")
    assert table["value"][of_norms].tolist() == [
        x["value"] for x, yes in zip(lines, of_norms, strict=True) if yes
    ]
    assert json.loads((folder / "config.json").read_text())["null"] == "spectrum"
    with pytest.raises(SystemExit):
        main(["measure", str(home / "memit")])
    assert "exists already" in capsys.readouterr().err
    assert RunFolder.open(home / "memit").damages() == []


def test_dense_updates_are_measured_too_but_have_no_factors(home: Path) -> None:
    config = MeasureConfig(weights=("size", "drift"), unedited=True, k=2)
    found = list(measures_at(home / "ft", (3, 1), config))
    lines = RunFolder.open(home / "ft").metrics()
    assert value(found, 1, "frobenius") == pytest.approx(lines[0]["norm"][PATH], rel=1e-6)
    assert value(found, 3, "frobenius") == pytest.approx(lines[2]["norm"][PATH], rel=1e-6)
    assert value(found, 3, "distance", model="random") == pytest.approx(value(found, 3, "distance"), rel=1e-5)
    assert not [row for row in found if row.measure.startswith("path_")]
    others = {row.where for row in found if row.model == "unedited"}
    assert others == {"layers.0.mlp.down.kernel", "layers.2.mlp.down.kernel"}
    assert value(found, 0, "growth", "layers.0.mlp.down.kernel", "unedited") == pytest.approx(1)
    with pytest.raises(RunError, match="dense"):
        path_of_run(pipeline.trajectory(home / "ft")[0], {})


def test_subspaces_of_more_directions_than_prompts_are_refused(home: Path) -> None:
    config = MeasureConfig(weights=(), path=False, activations=("subspace",), k=6)
    with pytest.raises(ConfigError, match="'edited' set has 6 prompts"):
        list(measures_at(home / "memit", (0,), config))


def tops(found: Trajectory) -> dict[str, Leading]:
    """The two leading triplets of every matrix before the first update."""
    return {path: leading(matrix, 2, jax.random.key(0)) for path, matrix in found.at(0).items()}


def test_a_path_leaves_out_what_was_refused_and_stops_where_it_is_told(tmp_path: Path) -> None:
    made: Made = make(tmp_path / "run", 7, drawn(bad=(4,)), Guard("skip"))
    path, found = next(iter(SHAPES)), made.trajectory()
    way = path_of_run(found, tops(found))[path]
    norms = [np.linalg.norm(np.asarray(live[path], np.float64)) for live in made.live]
    np.testing.assert_allclose(way["norm"], norms[1:], rtol=1e-6)
    assert way["step"][4] == way["step_in_both_subspace"][4] == 0
    assert len(path_of_run(found, tops(found), 5)[path]["norm"]) == 5


@pytest.mark.slow
def test_growth_laws_of_a_run(tmp_path: Path) -> None:
    """Random updates of equal size: both norms grow like a root."""
    run = write_run(tmp_path / "run", updates=60, chunk=20, shapes={PATH: (60, 40)}, rank=40)
    steps = run.steps()
    record = growth_record(path_rows(path_of_run(steps, tops(steps))), repeats=20)[PATH]
    laws = record["path_distance"]["laws"]
    assert laws["sqrt"]["weight"] + laws["power"]["weight"] > 0.99
    bounds = laws["sqrt"]["params"]["b"]
    expected = 0.01**4 * 40 * 60 * 40
    assert bounds["low"] < bounds["value"] < bounds["high"]
    assert bounds["value"] == pytest.approx(expected, rel=0.3)
    assert json.dumps(record)
    assert growth_record(path_rows(path_of_run(steps, tops(steps), 5))) == {}


def test_steps_are_spread_from_the_first_to_the_last() -> None:
    assert spread(range(11), 3) == [0, 5, 10]
    assert spread(range(4), 11) == [0, 1, 2, 3]
    assert spread(range(1), 5) == [0]
