"""Every step of a run again, to the bit; edits taken out; resumed runs."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxedit.editors.features import written
from jaxedit.errors import RunError
from jaxedit.linalg import dense
from jaxedit.trajectory.deltas import Delta, apply_delta, prints, read_delta, require_before, write_delta
from jaxedit.trajectory.run import replayed
from jaxedit.trajectory.snapshots import kept, retained
from jaxedit.trajectory.writer import RunWriter
from jaxedit.types import LowRank, Params
from tests.cases import same_bits
from tests.trajectory.made import SHAPES, Made, again, drawn, make, start

UPDATES = 80  # 27 chunks: more than the snapshots that are kept
PATH = next(iter(SHAPES))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("replay") / "run", UPDATES)


def test_any_step_is_what_the_run_had(made: Made) -> None:
    found = made.trajectory()
    assert found.steps == UPDATES
    for step in (0, 1, 2, 3, 17, 44, 45, 46, UPDATES - 1, UPDATES):
        assert same_bits(found.at(step), made.live[step]), step
    walked = dict(found.walk(range(0, UPDATES + 1, 7)))
    assert all(same_bits(matrices, made.live[step]) for step, matrices in walked.items())


def test_factors_and_numpy_are_enough(made: Made) -> None:
    """Nothing but the documented files and formula: `W = float32(W + left[:, i] right[i] + ...)`, sums in float64."""
    now = {path: np.asarray(matrix) for path, matrix in start().items()}
    lines = (made.folder.path / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line)["entry"] for line in lines]
    step = 0
    for entry in (entry for entry in entries if entry["kind"] == "chunk"):
        tensors = load_file(made.folder.path / "updates" / f"{entry['number']:06d}.safetensors")
        for offset in range(entry["updates"]):
            for path in now:
                left, right = tensors[f"{path}/left"][offset], tensors[f"{path}/right"][offset]
                total = now[path].astype(np.float64)
                for i in range(left.shape[1]):
                    total += np.outer(left[:, i].astype(np.float64), right[i].astype(np.float64))
                now[path] = total.astype(np.float32)
            step += 1
            assert same_bits(now, jax.tree.map(np.asarray, made.live[step]))
    assert step == UPDATES


def test_dense_updates_are_found_again_by_running_them(tmp_path: Path) -> None:
    editor = drawn(low_rank=False)
    made = make(tmp_path / "run", 56, editor)
    assert not made.folder.low_rank
    found = made.trajectory(again(editor))
    for step in (0, 1, 5, 30, 55, 56):
        assert same_bits(found.at(step), made.live[step]), step
    with pytest.raises(RunError, match=r"step 5 has to be run once more"):
        made.trajectory().at(5)


def test_a_run_with_low_rank_and_dense_chunks_counts_as_dense(tmp_path: Path) -> None:
    """As of an editor whose updates are dense where a chunk has many tokens. The third of 25 is dense."""
    made = make(tmp_path / "run", 75, drawn(), dense_chunks=(2,))
    folder = made.folder
    assert [bool(chunk.factors) for chunk in folder.journal.chunks[:4]] == [True, True, False, True]
    assert folder.damages() == []
    with RunWriter(folder):  # as when a run goes on
        pass
    assert folder.damages() == []
    assert same_bits(folder.restore(25, "edited", start()), made.live[75])
    assert same_bits(folder.state(made.state), made.state)
    found = made.trajectory(again(drawn()))
    for step in (4, 8, 75):
        assert same_bits(found.at(step), made.live[step]), step
    assert same_bits(
        dict(found.change(3, 9)), {path: made.live[9][path] - made.live[3][path] for path in SHAPES}
    )


def test_an_update_is_dense_for_all_matrices_where_it_is_for_one() -> None:
    matrix = jnp.ones((6, 4))
    deltas = dict(zip(SHAPES, (LowRank(jnp.ones((6, 1)), jnp.ones((1, 4))), matrix), strict=True))
    info = written(Params(start(), {}), None, deltas, {})[2]
    assert same_bits(info.delta, dict.fromkeys(SHAPES, matrix))


def test_state_is_found_again_too(made: Made) -> None:
    matrices, state = made.trajectory(again(drawn())).resumable(10)
    assert same_bits(matrices, made.live[10])
    assert int(state["sum"]) == sum(range(10))


def test_a_change_is_what_lies_between_two_steps(made: Made) -> None:
    found = made.trajectory()
    change = found.change(20, 37)
    for path, delta in change.items():
        assert isinstance(delta, LowRank)
        difference = np.asarray(made.live[37][path], np.float64) - np.asarray(made.live[20][path])
        np.testing.assert_allclose(dense(delta), difference, atol=1e-5)
    assert not dense(found.change(5, 5)[PATH]).any()
    with pytest.raises(RunError, match="from an earlier to a later step, not from 9 to 3"):
        found.change(9, 3)


def test_the_last_updates_are_undone_to_the_bit(made: Made) -> None:
    found = made.trajectory()
    assert same_bits(found.without([UPDATES - 1]), made.live[UPDATES - 1])
    assert same_bits(found.without([UPDATES - 2, UPDATES - 1]), made.live[UPDATES - 2])
    assert same_bits(found.without([]), made.live[UPDATES])


def test_an_earlier_update_is_undone_within_rounding(made: Made) -> None:
    """Every step after it rounds once more to float32: half a unit in the last place of the largest entry met."""
    update = 30
    found = made.trajectory().without([update])
    for path in SHAPES:
        change = dense(made.trajectory().change(update, update + 1)[path])
        subtracted = np.asarray(made.live[UPDATES][path], np.float64) - np.asarray(change, np.float64)
        largest = max(np.abs(np.asarray(matrices[path])).max() for matrices in made.live)
        bound = (UPDATES - update + 1) * 2.0**-23 * largest
        assert np.abs(np.asarray(found[path], np.float64) - subtracted).max() <= bound
    with pytest.raises(RunError, match="has no update 80: there are 80, from 0 to 79"):
        made.trajectory().without([UPDATES])


def test_steps_that_are_not_there_are_refused(made: Made) -> None:
    with pytest.raises(RunError, match=rf"has steps 0 to {UPDATES}, there is no step {UPDATES + 1}"):
        made.trajectory().at(UPDATES + 1)


def test_recorded_updates_lead_to_the_matrices_of_every_chunk(made: Made, tmp_path: Path) -> None:
    assert made.trajectory().differences() == []
    forged = make(tmp_path / "run", 6)
    chunk = forged.folder.journal.chunks[1]
    entries = (*forged.folder.journal.entries[:2], replace(chunk, edited="0" * 64))
    forged.folder.journal = forged.folder.journal._replace(entries=entries)
    (problem,) = forged.trajectory().differences()
    assert "after update 5 the factors lead to other matrices than the run had" in problem


def test_dense_updates_are_computed_again_to_be_compared(tmp_path: Path) -> None:
    editor = drawn(low_rank=False)
    made = make(tmp_path / "run", 7, editor)
    assert made.trajectory(again(editor)).differences() == []
    other = drawn(low_rank=False, huge=[4])
    problems = made.trajectory(again(other)).differences()
    assert [problem.split(" running")[0] for problem in problems] == ["after update 5", "after update 6"]
    with pytest.raises(RunError, match=r"step 3 has to be run once more"):
        made.trajectory().differences()


def test_a_damaged_snapshot_is_passed_by(tmp_path: Path) -> None:
    made = make(tmp_path / "run", 21)
    for number in made.folder.snapshots()[1:]:
        sums = made.folder.path / "snapshots" / f"{number:06d}" / "edited" / "SHA256SUMS"
        sums.write_text(sums.read_text().replace("a", "b"))
    assert same_bits(made.trajectory().at(21), made.live[21])


def test_few_snapshots_are_kept_however_long_a_run() -> None:
    for chunks in (0, 1, 16, 17, 100, 1000, 12345):
        found = kept(chunks, 16)
        assert 0 in found
        assert len(found) <= 17
        assert max(np.diff(sorted(found | {chunks})), default=0) <= max(1, chunks // 8)
    assert retained(100, low_rank=True)["state"] == {0, 100}
    assert 100 in retained(100, low_rank=False)["edited"]
    seen: set[int] = set()
    for chunks in range(200):  # what is kept later was kept all the time before
        assert kept(chunks, 16) <= seen | {chunks}
        seen = kept(chunks, 16)


def test_replay_leaves_out_what_was_not_applied() -> None:
    edited = {PATH: -np.zeros((2, 2), np.float32)}
    factors = {PATH: LowRank(np.zeros((1, 2, 1), np.float32), np.ones((1, 1, 2), np.float32))}
    assert same_bits(replayed(edited, factors, np.array([False])), edited)


def test_a_delta_file_carries_a_change_elsewhere(made: Made, tmp_path: Path) -> None:
    change = made.trajectory().change(0, UPDATES)
    write_delta(tmp_path / "delta.safetensors", Delta("f" * 64, change))
    back = read_delta(tmp_path / "delta.safetensors")
    assert back.weights == "f" * 64
    assert same_bits(back.change, change)
    for path, matrix in apply_delta(start(), back).items():
        np.testing.assert_allclose(matrix, made.live[UPDATES][path], atol=1e-5)
    with pytest.raises(RunError, match="exists already"):
        write_delta(tmp_path / "delta.safetensors", back)


def test_a_delta_file_holds_scales_and_says_what_it_belongs_on(tmp_path: Path) -> None:
    before = {PATH: jnp.ones((6, 4)), "norm.scale": jnp.ones(6), "other": jnp.ones(2)}
    change = {PATH: jnp.full((6, 4), 2.0), "norm.scale": jnp.arange(6.0)}
    file = tmp_path / "delta.safetensors"
    write_delta(file, Delta("", change, prints(before)))
    back = read_delta(file)
    require_before(before, back, file)
    assert same_bits(apply_delta(before, back)["norm.scale"], 1 + jnp.arange(6.0))
    with pytest.raises(
        RunError, match=r"delta.safetensors belongs on a model .* other of this one is another"
    ):
        require_before(before | {"other": jnp.zeros(2)}, back, file)


def test_delta_files_that_are_none_are_refused(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    write_delta(file, Delta("f" * 64, made.trajectory().change(0, 3)))
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    (tmp_path / "flipped").write_bytes(content)
    (tmp_path / "cut").write_bytes(content[:-9])
    (tmp_path / "text").write_text("no change")
    with pytest.raises(RunError, match="is damaged: its numbers are not those that were written"):
        read_delta(tmp_path / "flipped")
    for name in ("cut", "text"):
        with pytest.raises(RunError, match="is no change of a model, or is damaged"):
            read_delta(tmp_path / name)
    with pytest.raises(RunError, match="there is no file"):
        read_delta(tmp_path / "absent")
    with pytest.raises(RunError, match=r"of shape \(6, 4\), the model has no such matrix"):
        apply_delta({}, read_delta(file))
