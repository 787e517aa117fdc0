"""`jaxedit trace` end to end on a tiny random model."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxedit.cli import main
from jaxedit.data import dump_jsonl
from jaxedit.data.known import as_known
from jaxedit.data.trace import encode_trace
from jaxedit.diagnostics.tracing import (
    TraceConfig,
    average_effects,
    each_token,
    noise_scale,
    subject_noise,
    trace_effects,
)
from jaxedit.report.trace_figure import KINDS
from tests.cases import FACTS, Case


@pytest.fixture
def arguments(gpt2: Case, tmp_path: Path) -> list[str]:
    dump_jsonl(FACTS, tmp_path / "facts.jsonl")
    chosen = "--count 3 --no-known --subject-tokens 1"
    tracing = "--samples 2 --window 2 --span 2 --sites mlp residual --no-compile-cache"
    paths = ["--facts", str(tmp_path / "facts.jsonl"), "--out", str(tmp_path / "out")]
    return ["trace", str(gpt2.checkpoint.folder), *paths, *chosen.split(), *tracing.split()]


def test_it_writes_what_the_library_gives_and_chooses_by_it(
    gpt2: Case, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    record = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"trace.json", "trace.png", "trace.svg"}
    model, params = gpt2.model, gpt2.checkpoint.params
    known = [as_known(fact) for fact in FACTS[:3]]
    prompts = encode_trace(known, gpt2.checkpoint.tokenizer, max_length=model.config.max_positions)
    scale = noise_scale(model, params, prompts)
    noise = subject_noise(jax.random.key(0), prompts, 2, model.config.d_model, scale)
    config = TraceConfig(site="mlp", window=2)
    effects = trace_effects(model, params, prompts, noise, each_token(prompts), config)
    average = average_effects(effects.indirect, prompts)
    found = record["sites"]["mlp"]["indirect_effect"]
    for kind, row in zip(KINDS, np.asarray(average.effect), strict=True):
        written = found[kind.replace(" ", "_")]
        assert (written is None) == bool(np.isnan(row).any())
        if written is not None:
            np.testing.assert_allclose(written, row, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose([fact["clean"] for fact in record["facts"]], effects.clean, rtol=1e-5)
    profile = np.array(found["last_subject_token"])
    assert record["layer"] == profile.argmax()
    assert record["sites"]["residual"]["window"] == 1
    shown = capsys.readouterr().out
    assert f"--settings.layers {record['layer']}" in shown
    assert "last subject token" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--samples 0", "samples is 0"),
        ("--sites mlp mlp", "each once"),
        ("--subject-tokens 99", "with subjects of 99 or more tokens but 3"),
        ("--noise 0", "noise is 0.0"),
        ("--at-once 3", "must divide the number of noise samples, 2"),
        ("--count 6", "but 6 are asked for"),
        ("--known", "that the model knows with subjects of 1 or more tokens but 3 are asked for"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, *options.split()])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_no_folder_is_written_over(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "exists already" in capsys.readouterr().err
