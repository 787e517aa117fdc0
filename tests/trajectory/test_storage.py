"""What runs cost on disk."""

from pathlib import Path

import pytest

from scripts.storage import EDITS, GPT2_XL, factor_bytes, measure, whole_bytes
from tests.trajectory.synthetic import write_run

SHAPES = {"layers.0.mlp.down.kernel": (96, 48), "layers.1.mlp.down.kernel": (96, 48)}


def test_ten_thousand_edits_of_gpt2_xl() -> None:
    shapes = {"down": GPT2_XL}
    assert EDITS * factor_bytes(shapes) == pytest.approx(0.32e9)
    assert EDITS * whole_bytes(shapes) == pytest.approx(410e9, rel=0.01)


@pytest.mark.parametrize("rank", [1, 3])
def test_updates_cost_their_factors_and_the_rest_does_not_grow(tmp_path: Path, rank: int) -> None:
    short, long = (
        measure(write_run(tmp_path / str(n), n, 10, SHAPES, rank, remembers=False).path) for n in (170, 340)
    )
    assert short.lawful
    assert long.lawful
    assert 170 * factor_bytes(SHAPES, rank) < short.factors < 1.1 * 170 * factor_bytes(SHAPES, rank)
    whole = whole_bytes(SHAPES)
    assert short.snapshots < 17 * (whole + 10_000)
    assert long.snapshots < 17 * (whole + 10_000)
    assert long.documents < short.documents + 170 * 30, "one line of facts an update"
