"""The README's examples run."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxedit.errors import ModelError
from jaxedit.models.sources import load
from jaxedit.trajectory.run import Chunk, chunk_function, replayed
from tests.cases import Case, same_bits
from tests.test_interop import ENDING, Plain, assert_answers, numbers
from tests.trajectory.made import requests, start

README = (Path(__file__).parents[1] / "README.md").read_text()
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
