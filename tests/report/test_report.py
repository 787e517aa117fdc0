"""Figures and tables say what the record says, for every kind of run."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from jaxedit.diagnostics.path import alignment_share, path_of_factors
from jaxedit.editors import METHODS
from jaxedit.editors.transforms.table import TRANSFORMS
from jaxedit.report.figures import write_figures
from jaxedit.report.tables import editor_table, run_table, transform_table
from jaxedit.types import LowRank

from .records import record

RUNS = {
    "one run": [record()],
    "two runs": [record("a"), record("b", layers=(3,))],
    "stopped": [record(edits=4, finished=False)],
    "not scored": [record()._replace(scores={})],
    "without paraphrases": [
        record()._replace(
            scores=record().scores
            | {f"paraphrase_{w}": np.full(30, np.nan) for w in ("success", "magnitude", "accuracy", "tokens")}
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


@pytest.mark.parametrize("kind", ["along", "random", "turned"])
def test_the_log_tells_what_the_growth_is_due_to(kind: str) -> None:
    """The same number as from the matrices, of which the log holds the norms."""
    rng, path = np.random.default_rng(0), "layers.2.mlp.down.kernel"
    W = [rng.normal(size=(8, 8))]
    for _ in range(20):
        step = {"along": 0.1 * W[-1], "random": 0.1 * rng.normal(size=(8, 8)), "turned": -2 * W[-1]}[kind]
        W.append(W[-1] + step)
    deltas = np.diff(W, axis=0)
    norms = np.linalg.norm(W, axis=(1, 2))
    run = record(layers=(2,), edits=20)._replace(
        norm={path: norms[1:]},
        unedited_norm={path: norms[0]},
        update={path: np.linalg.norm(deltas, axis=(1, 2))},
    )
    walked = path_of_factors(
        jnp.asarray(W[0]), LowRank(jnp.asarray(deltas), jnp.tile(jnp.eye(8), (20, 1, 1)))
    )
    assert run.alignment_share(path) == pytest.approx(float(alignment_share(walked)[-1]), abs=1e-5)


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


@pytest.mark.parametrize(
    ("table", "names", "last"),
    [(editor_table, METHODS, "settings for"), (transform_table, TRANSFORMS, "updates")],
    ids=["editors", "transforms"],
)
def test_names_are_whole_in_a_narrow_terminal(
    table: Callable[[], Table], names: Iterable[str], last: str
) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert any(line.rstrip().endswith(last) for line in lines)
    firsts = [line.split()[0] for line in lines if line[1:2].strip()]
    assert [name for name in firsts if name in names] == list(names)


def test_the_list_tells_of_which_transforms_factors_are_stored() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(transform_table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    told = {line.split()[0]: line.rstrip().endswith("dense") for line in lines if line[1:2].strip()}
    assert {name: told[name] for name in TRANSFORMS} == {
        name: not row.low_rank for name, row in TRANSFORMS.items()
    }
