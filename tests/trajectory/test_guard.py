"""Updates that are not finite or too large: left out, taken back, or the end of the run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.trajectory.guard import Guard, Policy, guard_of, reasons
from jaxedit.trajectory.run import Chunk, chunk_function
from tests.cases import same_bits
from tests.trajectory.made import SHAPES, drawn, make, requests, start, watching

CASES = range(5)


def applied(policy: Policy, **editor) -> tuple[list[bool], list[int], dict, dict]:
    norms = {path: float(jnp.linalg.norm(matrix)) for path, matrix in start().items()}
    guard = guard_of(norms, policy, edit=5.0, total=20.0)
    apply = chunk_function(drawn(**editor), watching, guard)
    chunk = Chunk(requests(CASES), requests(CASES))
    edited, state, steps = apply(start(), {}, {"sum": jnp.zeros((), jnp.int32)}, chunk)
    return (
        np.asarray(steps.applied).tolist(),
        np.asarray(steps.refused).tolist(),
        edited,
        state | {"steps": steps},
    )


@pytest.mark.parametrize("editor", [{"bad": [2]}, {"huge": [2]}])
def test_skip_leaves_out_the_update_alone(editor: dict) -> None:
    flags, codes, edited, state = applied("skip", **editor)
    assert flags == [True, True, False, True, True]
    assert [code > 0 for code in codes] == [False, False, True, False, False]
    assert int(state["sum"]) == 0 + 1 + 3 + 4, "what it would have remembered is left out too"
    assert all(np.isfinite(matrix).all() for matrix in edited.values())
    for path in SHAPES:
        assert not np.asarray(state["steps"].factors[path].left[2]).any()
        assert (
            np.asarray(state["steps"].observed[path][2]).tobytes()
            == np.asarray(state["steps"].observed[path][1]).tobytes()
        )


def test_stop_applies_nothing_from_the_refused_update_on() -> None:
    flags, codes, edited, state = applied("stop", bad=[2])
    assert flags == [True, True, False, False, False]
    assert reasons(codes[2])[0] == "not finite"
    assert same_bits(edited, jax.tree.map(lambda x: x[1], state["steps"].observed))


def test_rollback_takes_the_whole_chunk_back() -> None:
    flags, _, edited, state = applied("rollback", huge=[2])
    assert flags == [False] * 5
    assert same_bits(edited, start())
    assert int(state["sum"]) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state["steps"].factors))
    norms = {path: np.linalg.norm(matrix) for path, matrix in start().items()}
    assert all(np.asarray(state["steps"].norm[path]) == pytest.approx(norm) for path, norm in norms.items())


def test_a_good_sequence_is_the_same_under_every_policy() -> None:
    results = [applied(policy)[2] for policy in ("stop", "skip", "rollback")]
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_budgets_are_shares_of_the_unedited_norms() -> None:
    guard = guard_of({"a": 2.0}, "skip", edit=0.5, total=3.0)
    assert guard == Guard("skip", {"a": 1.0}, {"a": 6.0})
    assert reasons(0b110) == ["over the budget of one edit", "over the budget of all edits"]


def test_refused_updates_are_in_the_journal_and_replay_knows_them(tmp_path: Path) -> None:
    made = make(tmp_path / "run", 7, drawn(bad=[4]), Guard("skip"))
    assert [chunk.refused for chunk in made.folder.journal.chunks] == [(), (4,), ()]
    for step in range(8):
        assert same_bits(made.trajectory().at(step), made.live[step])
