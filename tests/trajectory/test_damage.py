"""What becomes of damaged files: seen, never read as something else, and the rest stays readable."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxedit.digests import fingerprint
from jaxedit.errors import RunError
from jaxedit.trajectory.files import SUMS, check_sums, write_sums
from jaxedit.trajectory.snapshots import folder_of
from jaxedit.trajectory.store import RunFolder
from scripts.check_damage import damage_many
from tests.trajectory.synthetic import write_run


def test_any_bit_or_cut_is_seen_and_intact_steps_stay(tmp_path: Path) -> None:
    tallies = damage_many(tmp_path, trials=30, seed=1, updates=22).values()
    assert [line for tally in tallies for line in (*tally.silent, *tally.wrong, *tally.lost)] == []
    assert sum(tally.trials for tally in tallies) == 30
    assert sum(tally.read for tally in tallies) > 100
    assert sum(tally.refused for tally in tallies) > 5


def test_every_bit_of_a_list_of_checksums_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    write_sums(tmp_path)
    assert check_sums(tmp_path) == []
    content = (tmp_path / SUMS).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / SUMS).write_bytes(flipped)
        assert check_sums(tmp_path), f"bit {bit}"
    for end in range(len(content)):
        (tmp_path / SUMS).write_bytes(content[:end])
        assert check_sums(tmp_path), f"cut at {end}"


@pytest.mark.parametrize("part", ["edited", "state"])
def test_dense_updates_are_run_again_from_the_snapshot_before_a_damaged_one(
    tmp_path: Path, part: str
) -> None:
    run = write_run(tmp_path / "run", updates=8, chunk=2, dense=True)
    expected = run.steps().at(5)
    damaged = next(
        file for file in folder_of(run.path / "snapshots", 2, part).rglob("*") if file.stat().st_size > 200
    )
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert RunFolder.open(run.path).damages()
    found = run.steps()
    assert fingerprint(found.at(5)) == fingerprint(expected)
    assert fingerprint(found.at(8)) == fingerprint(run.truth[-1])
    found._rerun = None
    with pytest.raises(RunError, match="is damaged"):
        found.at(4)


def test_a_synthetic_run_is_what_the_driver_did(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", updates=7, chunk=3)
    for chunks, matrices in enumerate(run.truth):
        step = min(3 * chunks, 7)
        assert fingerprint(run.steps().at(step)) == fingerprint(matrices)
    before, after = run.truth[0], run.truth[-1]
    change = jax.tree.map(np.asarray, run.steps().change(0, 7))
    for path, factors in change.items():
        np.testing.assert_allclose(factors.left @ factors.right, after[path] - before[path], atol=1e-6)
