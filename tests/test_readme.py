"""The README's examples run, and what documents name is there."""

import dataclasses
import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxedit import pipeline
from jaxedit.cli import main
from jaxedit.configs import build
from jaxedit.data import dump_jsonl, load_facts
from jaxedit.editors import METHODS
from jaxedit.errors import ModelError
from jaxedit.evaluation.drift import last_states
from jaxedit.evaluation.edits import KINDS
from jaxedit.models.sources import load
from jaxedit.pipeline import RunConfig, check
from jaxedit.pipeline.asked import AbilityAt
from jaxedit.pipeline.measured import Row
from jaxedit.trajectory.run import Chunk, chunk_function, replayed
from jaxedit.trajectory.store import RunFolder
from jaxedit.types import Params
from tests.cases import FACTS, Case, same_bits
from tests.test_interop import ENDING, Plain, assert_answers, numbers
from tests.trajectory.made import requests, start

ROOT = Path(__file__).parents[1]
README, FORMAT = ((ROOT / name).read_text() for name in ("README.md", "docs/run-format.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(word: str) -> str:
    (found,) = (text for text in BLOCKS if word in text)
    return found


def test_an_editor_of_ones_own_runs_is_logged_and_replayed() -> None:
    text = block("def noise")
    body = text[text.index("def noise") :].strip().splitlines()
    assert len(body) < 15
    names: dict[str, Any] = {"jax": jax, "jnp": jnp}
    exec(text, names)
    editor = names["noise"](0.1)
    edited, state, steps = chunk_function(editor)(
        start(), {}, editor.init(None), Chunk(requests(range(4)), None)
    )
    assert int(state) == 4
    assert np.asarray(steps.applied).all()
    assert not same_bits(edited, start())
    assert same_bits(replayed(start(), steps.factors, steps.applied), edited)


@pytest.fixture
def noisy(cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of the README's own editor, on a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(METHODS, "noise", METHODS["ft"])  # and put back
    dump_jsonl(FACTS[:3], tmp_path / "facts.jsonl")
    names: dict[str, Any] = {"jax": jax, "jnp": jnp}
    exec(block("def noise"), names)
    given = (
        f'model={str(cases["gpt2"].checkpoint.folder)!r}, facts="facts.jsonl", known=False, chunk=2, count=3'
    )
    exec(block("METHODS[").replace("count=30", given), names)
    return tmp_path / "runs" / "noise"


def test_an_editor_of_ones_own_has_runs_like_the_rest(noisy: Path) -> None:
    folder = RunFolder.open(noisy)
    assert (folder.finished, folder.updates, folder.low_rank) == (True, 3, True)
    found, config, _ = pipeline.trajectory(noisy)
    assert found.differences() == []
    (first,), (last,) = (found.at(step).values() for step in (0, 3))
    assert not same_bits(first, last)
    half = dataclasses.replace(config, out=str(noisy.with_name("half")))
    assert not pipeline.run(half, stop=lambda: True).finished
    assert pipeline.resume(half.out).finished
    assert same_bits(pipeline.trajectory(half.out)[0].at(3), found.at(3))
    main(["report", str(noisy), "--no-page", "--formats", "svg"])
    assert (noisy / "figures" / "norms.svg").exists()


def test_the_example_of_every_step_measures_them(noisy: Path) -> None:
    names: dict[str, Any] = {}
    text = block("residual_norms").replace("runs/hundred", "runs/noise")
    exec(text.replace("steps.steps + 1, 10", "steps.steps + 1, 1"), names)
    norms, prepared = names["norms"], names["prepared"]
    assert list(norms) == [0, 1, 2, 3]
    assert norms[0][0] == norms[3][0]  # before the layer that is edited
    assert (norms[0][1:] != norms[3][1:]).all()
    params = Params(names["steps"].at(3), prepared.params.frozen)
    hidden = last_states(prepared.checkpoint.model, params, names["tokens"])
    np.testing.assert_allclose(norms[3][-1], np.linalg.norm(hidden[0, -1]), rtol=1e-5)


def test_the_run_format_names_the_keys_that_are_there(noisy: Path) -> None:
    written = json.loads((noisy / "environment.json").read_text())
    assert named("environment.json") == written.keys() | {"branch"}
    line = json.loads((noisy / "metrics.jsonl").read_text().splitlines()[0])
    assert named("a line of `metrics.jsonl") == line.keys()
    tested = {f"{kind}_{what}" for kind in KINDS for what in ("success", "magnitude", "accuracy", "tokens")}
    assert line["scores"].keys() == tested | {"knows"}
    assert named("`RUN-ability`") == set(AbilityAt._fields)
    rows = FORMAT[FORMAT.index("| `measures.jsonl` |") :].splitlines()[0]
    assert set(re.findall(r"`(\w+)`", rows)) - {"null"} == set(Row._fields)


def named(table: str) -> set[str]:
    """The keys in the first column of the table that comes after these words."""
    lines = FORMAT[FORMAT.index(table) :].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    keys = itertools.takewhile(lambda line: line.startswith("|"), lines[begin + 1 :])
    return {name for line in keys for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_configurations_are_those_of_a_run() -> None:
    configs = [
        build(RunConfig, tomllib.loads(text)) for text in re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    ]
    for config in configs:
        check(config)
    (watch,) = (config.watch for config in configs if config.watch.wanted)
    assert watch.measures.activations
    assert watch.questions.text
    assert watch.questions.tasks


def test_the_example_of_a_fact_can_be_used(tmp_path: Path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    (tmp_path / "facts.jsonl").write_text(" ".join(text.splitlines()))
    (fact,) = load_facts(tmp_path / "facts.jsonl")
    table = README[README.index("| `id` |") : README.index("The first five are required")]
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(fact))


def test_the_example_of_questions_runs(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(("fine", "dull") * 6)]
    (tmp_path / "sst2.json").write_text(json.dumps(rows))
    names: dict[str, Any] = {"base": cases["llama"].checkpoint, "limit": 512}
    names["params"] = names["base"].params
    exec(block("encode_quizzes"), names)
    assert names["scores"].asked == 2
    assert 0 <= names["scores"].likelihood.f1 <= 1


def test_the_example_of_a_module_of_ones_own_edits_it(gpt2: Case) -> None:
    module = Plain(nnx.Rngs(0))
    untouched = numbers(module)
    names: dict[str, Any] = {"module": module, "facts": [ENDING], "blocks": gpt2.blocks}
    exec(block("interop"), names | {"tokenizer": gpt2.checkpoint.tokenizer}, names)
    assert bool(names["info"].finite)
    assert_answers(module, names["after"], untouched, names["requests"])


@pytest.mark.slow
def test_the_library_example_edits_and_its_chain_too() -> None:
    try:
        load("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"no SmolLM2-135M: {error}")
    names: dict[str, Any] = {}
    exec(block('base = load("smollm2-135m")'), names)
    assert bool(names["info"].finite)
    assert np.asarray(names["steps"].applied).all()
    exec(block("chain(memit.build"), names)
    editor, params = names["editor"], names["params"]
    after, _, info = jax.jit(editor.update)(params, editor.init(params), names["requests"][0])
    assert bool(info.finite)
    for path, matrix in params.edited.items():
        before, now = (jnp.linalg.svd(w, compute_uv=False) for w in (matrix, after.edited[path]))
        np.testing.assert_allclose(now, before, rtol=1e-3)
