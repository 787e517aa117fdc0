"""What the experiments share, and one of them from its models to its figure."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import e3_ability, small_models
from experiments.arms import MITIGATIONS, SMALL, arm
from experiments.common import (
    NULLS,
    Study,
    every_seed,
    facts_of,
    measured,
    name_of,
    network,
    random_matrices,
)
from experiments.drawing import at_measurements, band, growth, rises, shown
from experiments.interference import moved
from jaxedit.data import Fact, load_facts
from jaxedit.editors import METHODS
from jaxedit.editors.transforms import read_transform
from jaxedit.errors import ModelError
from jaxedit.models.families import decoder_config
from jaxedit.models.sources import load
from jaxedit.pipeline import known_facts, trajectory
from jaxedit.report.record import layer_of
from jaxedit.training.pretrain import PretrainPlan

TABLE = {
    "facts": [0, 2, 4],
    "edits": [0, 1, 2, 3, 4],
    "norm": {"a": [3.0, 3.0, 6.0, 3.0, 9.0], "b": [4.0, 4.0, 8.0, 4.0, 12.0]},
    "edited": {"norm": [{"a": 3.0, "b": 4.0}, {"a": 6.0, "b": 8.0}, {"a": 9.0, "b": 12.0}]},
}


def test_the_band_is_students_interval_and_nothing_for_one_seed() -> None:
    found = band([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(found.mean, [2.0, 5.0])
    np.testing.assert_allclose(
        found.high - found.mean, [4.302653 / np.sqrt(3), 0.0], rtol=1e-6
    )  # t, 2 degrees
    np.testing.assert_allclose(found.mean - found.low, found.high - found.mean)
    assert band([[1.0]]) == (1.0, 1.0, 1.0)
    assert shown([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert shown([1.5]) == "1.50"
    assert shown([np.nan, 1.0]) == "–"


def test_growth_is_of_all_matrices_together() -> None:
    np.testing.assert_allclose(growth(TABLE), [1, 1, 2, 1, 3])
    assert rises(TABLE) == 0.5
    np.testing.assert_allclose(at_measurements(TABLE), [1, 2, 3])


def test_every_arm_is_one_that_the_library_knows() -> None:
    model = decoder_config(small_models.family_config(small_models.SmallModels(), "llama", 1024))
    for name, settings in SMALL.items():
        METHODS[name].configure(model, settings)
    for text in MITIGATIONS:
        read_transform(text)


def test_on_other_models_editors_keep_their_presets() -> None:
    assert arm(Study(model="smollm2-135m"), "memit").settings.layers is None


def test_an_editors_name_goes_on_with_settings() -> None:
    bare, own = (arm(Study(), name) for name in ("alphaedit", "alphaedit:lam_n=100,null_fraction=0.95"))
    assert own.editor == "alphaedit"
    assert (own.settings.lam_n, own.settings.null_fraction, own.settings.layers) == (
        100,
        0.95,
        bare.settings.layers,
    )
    assert own.label == "alphaedit:lam_n=100,null_fraction=0.95"
    assert name_of(Study(), own, 0) != name_of(Study(), bare, 0)


def test_measures_of_runs_lie_apart_also_where_names_have_dots() -> None:
    arms = [arm(Study(), "memit", text) for text in ("rect:0.4", "revive:0.2")]
    assert len({name_of(Study(), one, seed) for one in arms for seed in (0, 1)}) == 4


def test_what_is_kept_of_a_run_is_read_without_the_run(tmp_path: Path) -> None:
    study = Study(out=tmp_path / "runs", results=tmp_path / "results", model=str(tmp_path / "absent"))
    one = arm(study, "memit", "rect:0.4")
    file = tmp_path / "results" / f"{name_of(study, one, 2)}.{study.every}.json.gz"
    file.parent.mkdir()
    file.write_bytes(gzip.compress(json.dumps(TABLE).encode()))
    assert measured(study, one, 2) == TABLE
    with pytest.raises(ModelError, match="absent"):
        measured(study, one, 1)


def test_runs_of_a_model_that_was_trained_again_are_not_mixed_with_those_before(tmp_path: Path) -> None:
    study = Study(out=tmp_path / "runs", results=tmp_path, seeds=(0,))
    arms = [arm(study, editor) for editor in ("memit", "ft")]
    for one, a in zip(arms, (3.0, 3.001), strict=True):
        table = TABLE | {"norm": {"a": [a, 4.0]}, "yardstick": {"b": 4.0}}
        file = tmp_path / f"{name_of(study, one, 0)}.{study.every}.json.gz"
        file.write_bytes(gzip.compress(json.dumps(table).encode()))
    assert every_seed(study, arms[:1])[0][0]["norm"] == {"a": [3.0, 4.0]}
    with pytest.raises(
        SystemExit, match=r"two models called runs/small/llama: \|\|a\|\| is 3 in one and 3.001"
    ):
        every_seed(study, arms)


@pytest.mark.parametrize("match", NULLS.values())
def test_a_null_model_has_its_measure_in_common_with_the_edited_one(match: str) -> None:
    rng = np.random.default_rng(0)
    first = {"w": rng.normal(size=(6, 9)), "scale": rng.normal(size=6)}
    now = {"w": first["w"] + np.outer(rng.normal(size=6), rng.normal(size=9)), "scale": first["scale"] * 2}
    found = random_matrices(first, now, match, seed=0, step=3)
    assert not np.allclose(found["w"], random_matrices(first, now, match, seed=0, step=4)["w"])
    values = {
        name: np.linalg.svd(np.asarray(matrices["w"] - first["w"]), compute_uv=False)
        for name, matrices in (("true", now), ("null", found))
    }
    np.testing.assert_allclose(np.linalg.norm(values["null"]), np.linalg.norm(values["true"]), rtol=1e-5)
    assert np.allclose(values["null"], values["true"], atol=1e-5) == (match == "spectrum")
    np.testing.assert_allclose(
        np.linalg.norm(found["scale"] - first["scale"]), np.linalg.norm(first["scale"]), rtol=1e-5
    )


@pytest.mark.slow
def test_an_experiment_runs_from_its_model_to_its_figure(tmp_path: Path) -> None:
    """A toy: four scripts, a dozen facts; run again it repeats nothing and writes the same."""
    toy = small_models.SmallModels(
        out=tmp_path / "small",
        families=("llama",),
        relations=("language_script",),
        controls=20,
        vocabulary=400,
        layers=2,
        width=32,
        heads=2,
        plan=PretrainPlan(steps=150, rows=8, every=50),
    )
    small_models.main(toy)
    facts, controls = (load_facts(str(toy.out / f"{name}.jsonl")) for name in ("facts", "controls"))
    assert not {fact.subject for fact in facts} & {fact.subject for fact in controls}
    options = e3_ability.AbilityLoss(
        out=tmp_path / "study", model=str(toy.out / "llama"), count=12, every=4, seeds=(0, 1), editors=("ft",)
    )
    e3_ability.main(options)
    numbers = json.loads((options.out / "e3.json").read_text())
    found = numbers["arms"]["ft"]
    assert [table["facts"] for table in found] == [[0, 4, 8, 12]] * 2
    assert [found[0][model]["recall"][0] for model in ("edited", "random", "turned")] == [1.0] * 3
    assert len(found[0]["retention"]) == 4
    assert sum(group["facts"] for group in found[0]["retention"]) == 12
    ages = [group["youngest"] for group in found[0]["retention"]]
    assert ages == sorted(ages)
    assert np.ptp([found[0][model]["entropy"][0] for model in ("edited", "random")]) == 0
    assert min(found[0]["edited"]["entropy"]) > 0
    assert found[0]["random"]["kl"][-1] != found[0]["turned"]["kl"][-1]
    assert found[0]["growth"] != found[1]["growth"]
    assert found[0]["edited"]["kl"][-1] > 0
    written = {file: file.read_bytes() for file in options.out.glob("e3.*")}
    assert {file.suffix for file in written} == {".json", ".md", ".png", ".pdf"}
    e3_ability.main(options)
    assert all(file.read_bytes() == content for file, content in written.items())
    net = network(options, mend := arm(options, "mend:layers=[1],rank=8"), 0)
    edited, learned = (
        facts_of(options, 0),
        json.loads((net.parent / "record.json").read_text())["config"]["facts"],
    )
    ids = [{fact.id for fact in load_facts(str(file))} for file in (edited, learned)]
    assert ids[0].isdisjoint(ids[1])
    assert set.union(*ids) == {fact.id for fact in facts}
    assert growth(measured(options, mend, 0))[-1] != 1
    far = moved(options, arm(options, "ft"), 0)
    assert [far[model][0] for model in ("edited", "random", "turned")] == [0.0] * 3
    run = options.out / "runs" / name_of(options, arm(options, "ft"), 0)
    first, now = (trajectory(run)[0].at(step) for step in (0, 12))
    keys = keys_by_torch(toy.out / "llama", controls, first)
    expected = [
        np.linalg.norm(k @ (now[at] - first[at])) / np.linalg.norm(k @ first[at]) for at, k in keys.items()
    ]
    np.testing.assert_allclose(far["edited"][-1], np.mean(expected), rtol=1e-4)


def keys_by_torch(folder: Path, facts: list[Fact], paths: Iterable[str]) -> dict[str, np.ndarray]:
    """What the down-projections read at the last subject token of the facts known, by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    for path, rows in seen.items():
        down = model.model.layers[layer_of(path)].mlp.down_proj
        down.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0][0].detach()))
    found: dict[str, list[np.ndarray]] = {path: [] for path in seen}
    for fact in known_facts(facts, len(facts), load(str(folder))):
        tokens = tokenizer(fact.prompt, return_offsets_mapping=True, return_tensors="pt")
        starts = tokens.pop("offset_mapping")[0, :, 0].numpy()
        at = int(np.flatnonzero(starts < fact.prompt.index(fact.subject) + len(fact.subject))[-1])
        model(**tokens)
        for path, rows in seen.items():
            found[path].append(rows[-1][at].numpy())
    return {path: np.array(rows) for path, rows in found.items()}
