"""The event files, read by TensorBoard itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxedit.report.events import FILE, write_events

from .records import record
from .test_page import HOSTILE, measured, source
from .test_report import RUNS

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_multiplexer", reason="TensorBoard is not installed"
)


def read(folder: Path) -> Any:
    found = reader.EventMultiplexer({}, {"scalars": 0}).AddRunsFromDirectory(str(folder))
    found.Reload()
    return found


def test_tensorboard_reads_the_records_numbers(tmp_path: Path) -> None:
    run = measured(record())._replace(config={"editor": HOSTILE})
    files = write_events([run, source(record())], tmp_path)
    names = ["demo (1)", "demo (1)-random", "demo (2)"]
    assert files == [tmp_path / name / FILE for name in names]
    found = read(tmp_path)
    assert sorted(found.Runs()) == names
    tags = found.Runs()[names[0]]["scalars"]
    path = "layers.1.mlp.down.kernel"

    def series(tag: str, name: str = names[0]) -> tuple[list[int], list[float]]:
        events = found.Scalars(name, tag)
        return [event.step for event in events], [event.value for event in events]

    steps, norms = series(f"norm/{path}")
    edits, norm = record().trajectory(path)
    assert steps == list(edits)
    np.testing.assert_allclose(norms, norm, rtol=1e-6)
    np.testing.assert_allclose(series("running/PS")[1], record().running("PS"), rtol=1e-6)
    assert series("all_edits/ES") == ([0, 30], pytest.approx([0.9, 0.9]))
    assert series("mlp.down.kernel/growth/layer_2") == ([0, 10, 30], pytest.approx([0.2, 10.2, 30.2]))
    assert series("mlp.down.kernel/growth/layer_2", names[1]) == ([10, 30], pytest.approx([10.21, 30.21]))
    assert [tag for tag in tags if tag.startswith("residual/angle/")], "whatever the prompts are called"
    (text,) = found.Tensors(names[0], "config/text_summary")
    assert HOSTILE.encode() in text.tensor_proto.string_val[0].replace(b'\\"', b'"')


@pytest.mark.parametrize("case", RUNS)
def test_any_runs_are_written_the_same_twice(case: str, tmp_path: Path) -> None:
    runs = [source(run) for run in RUNS[case]]
    first = {file: file.read_bytes() for file in write_events(runs, tmp_path)}
    assert {file: file.read_bytes() for file in write_events(runs, tmp_path)} == first
