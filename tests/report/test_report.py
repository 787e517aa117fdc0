"""Figures and tables say what the record says, for every kind of run."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxedit.report.figures import write_figures
from jaxedit.report.tables import run_table

from .records import record

RUNS = {
    "one run": [record()],
    "two runs": [record("a"), record("b", layers=(3,))],
    "stopped": [record(edits=4, finished=False)],
    "not scored": [record()._replace(scores={})],
    "without paraphrases": [
        record()._replace(
            scores=record().scores
            | {f"paraphrase_{w}": np.full(30, np.nan) for w in ("success", "magnitude", "accuracy")}
        )
    ],
    "exploded": [record()._replace(norm={"layers.1.mlp.down.kernel": np.r_[np.logspace(1, 6, 29), np.nan]})],
    "all in one update": [
        record()._replace(edits=np.array([30]), norm={"layers.1.mlp.down.kernel": np.array([12.0])})
    ],
    "every layer edited": [record(layers=tuple(range(6)))],
}


@pytest.mark.parametrize("case", RUNS)
def test_figures_come_out_the_same_twice(case: str, tmp_path: Path) -> None:
    first, second = (write_figures(RUNS[case], tmp_path / name) for name in ("first", "second"))
    assert [file.name for file in first] == ["norms.png", "norms.svg", "scores.png", "scores.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5000


def test_growth_starts_at_the_unedited_norm() -> None:
    run = record(layers=(2,))
    edits, norm = run.trajectory("layers.2.mlp.down.kernel")
    assert edits[0] == 0
    assert norm[0] == 12.0
    np.testing.assert_allclose(run.growth("layers.2.mlp.down.kernel")[[0, -1]], [0.0, 0.01])


def test_the_band_holds_only_unedited_matrices_of_the_same_kind() -> None:
    run = record(layers=(1, 2))
    assert run.same_kind("layers.1.mlp.down.kernel") == [10.0, 13.0, 14.0, 15.0]


def test_running_mean_passes_over_facts_without_probes() -> None:
    run = record(edits=3)
    run.scores["paraphrase_success"][:] = [np.nan, 1.0, 0.0]
    np.testing.assert_array_equal(run.running("PS"), [np.nan, 1.0, 0.5])


@pytest.mark.parametrize("case", RUNS)
def test_table_fits_a_narrow_terminal(case: str) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(run_table(RUNS[case]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "right after" in text
    assert ("jaxedit resume" in text) == (case == "stopped")
    assert ("90.0" in text) == (case != "stopped")
