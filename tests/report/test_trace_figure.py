"""The figure of a trace comes out for every kind of map, the same twice."""

from pathlib import Path

import numpy as np
import pytest

from jaxedit.report.trace_figure import TraceMap, write_trace_figure

RNG = np.random.default_rng(0)
FACTS = np.array([5.0, 4, 20, 20, 0, 20])
EFFECT = np.where(FACTS[:, None] > 0, RNG.normal(0.05, 0.03, (6, 12)), np.nan)
MAPS = {
    "one site": [TraceMap("mlp", 10, EFFECT, FACTS)],
    "all sites": [TraceMap(site, 1, EFFECT, FACTS) for site in ("residual", "mlp", "attention")],
    "one layer": [TraceMap("mlp", 10, EFFECT[:, :1], FACTS)],
    "no effect": [TraceMap("attention", 10, 0.0 * EFFECT, FACTS)],
}


@pytest.mark.parametrize("case", MAPS)
def test_the_figure_comes_out_the_same_twice(case: str, tmp_path: Path) -> None:
    first, second = (write_trace_figure(MAPS[case], tmp_path / name, "title") for name in ("a", "b"))
    assert [file.name for file in first] == ["trace.png", "trace.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5000
