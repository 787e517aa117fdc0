"""What every editor of the table must do, whatever it computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.editors import METHODS
from jaxedit.errors import StatisticsError
from jaxedit.trajectory.run import Chunk, chunk_function, many_function, replayed, stack
from jaxedit.types import EditInfo, Editor, LowRank, Params
from tests.cases import Case, relative, same_bits
from tests.editors.rows import BATCHES, Row, make_row

TOKENWISE = ("mend", "malmen", "ultraedit", "stableedit")
ADAPTERS = ("lora", "lora-sequence")


def quick(*names: str) -> list[Any]:
    """All editors; what is asked of each takes seconds to minutes, so that of others than these it is a slow test."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in METHODS]


@pytest.fixture(scope="module", params=METHODS)
def row(request: pytest.FixtureRequest, gpt2: Case) -> Row:
    return make_row(request.param, gpt2)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_types_and_shapes(row: Row) -> None:
    params, state, info = row.first()
    assert isinstance(row.editor, Editor)
    assert isinstance(params, Params)
    assert isinstance(info, EditInfo)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((row.state, state, info)))
    assert shapes(params) == shapes(row.params)
    assert shapes(state) == shapes(row.state)
    assert sorted(info.delta) == sorted(row.paths)
    for path, delta in info.delta.items():
        d_in, d_out = row.params.edited[path].shape
        if isinstance(delta, LowRank):
            rank = delta.left.shape[1]
            assert shapes(delta) == LowRank(((d_in, rank), jnp.float32), ((rank, d_out), jnp.float32))
            assert rank == len(BATCHES[0]) if row.method.needs_moments else rank < min(d_in, d_out)
        else:
            assert shapes(delta) == ((d_in, d_out), jnp.float32)
    if row.method.name not in TOKENWISE:  # these are dense where there are more tokens than dimensions
        low_rank = row.method.name in ADAPTERS or "dense" not in row.method.edits
        assert all(isinstance(delta, LowRank) == low_rank for delta in info.delta.values())
    assert info.finite.shape == ()
    assert info.finite.dtype == bool
    assert bool(info.finite)


def test_delta_is_the_change_of_the_matrices(row: Row) -> None:
    params, _, info = row.first()
    for path, delta in info.delta.items():
        change = np.asarray(params.edited[path], np.float64) - np.asarray(row.params.edited[path], np.float64)
        stated = np.asarray(delta.left, np.float64) @ delta.right if isinstance(delta, LowRank) else delta
        assert np.linalg.norm(change) > 0
        scale = np.linalg.norm(row.params.edited[path])
        assert np.linalg.norm(change - stated) <= 1e-6 * scale


def test_arguments_are_left_as_they_were_and_the_same_call_gives_the_same_bits(row: Row) -> None:
    before = jax.tree.map(lambda x: np.array(x), (row.params, row.state, row.batches[0]))
    first = row.first()
    assert same_bits((row.params, row.state, row.batches[0]), before)
    assert same_bits(row.first(), first)


def test_state_shares_no_memory_with_the_parameters(row: Row) -> None:
    """So that a driver may take the state over."""
    for leaf in jax.tree.leaves(row.editor.init(row.params)):
        leaf.delete()
    kept = (row.params, row.given, row.case.checkpoint.params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_a_batch_of_padding_is_no_edit(row: Row) -> None:
    """Also after edits, when a method has something to restore."""
    params, state, _ = row.first()
    emptied = "weight" if row.method.request == "facts" else "valid"
    nothing = row.batches[1]._replace(**{emptied: jnp.zeros_like(getattr(row.batches[1], emptied))})
    after, kept, info = row.update(params, state, nothing)
    assert bool(info.finite)
    assert same_bits(after, params)
    for mine, before in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(mine, before, rtol=0, atol=1e-12 * np.abs(before).max())


def test_compiled_once_over_a_sequence(row: Row) -> None:
    params, state = row.params, row.state
    for requests in row.batches:
        params, state, _ = row.update(params, state, requests)
    assert len(row.traces) == 1


@pytest.mark.parametrize("row", quick("ft", "mend"), indirect=True)
def test_update_uncompiled_is_the_compiled_one_and_changes_only_its_matrices(row: Row) -> None:
    params, state, info = row.first()
    with jax.disable_jit():
        plain_params, plain_state, plain_info = row.editor.update(row.params, row.state, row.batches[0])
    assert plain_params.frozen is row.params.frozen
    same = {path for path, matrix in plain_params.edited.items() if matrix is row.params.edited[path]}
    assert same == row.params.edited.keys() - set(row.paths)
    assert same
    assert shapes(plain_state) == shapes(state)
    assert shapes(plain_info) == shapes(info)
    for path in row.paths:
        start = np.asarray(row.params.edited[path], np.float64)
        assert relative(plain_params.edited[path] - start, params.edited[path] - start) <= 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_finite_is_false_where_a_weight_is_not(row: Row, bad: float) -> None:
    path = "layers.2.attention.value.kernel"
    broken = row.params.frozen | {path: row.params.frozen[path].at[0, 0].set(bad)}
    _, _, info = row.update(row.params._replace(frozen=broken), row.state, row.batches[0])
    assert not bool(info.finite)
    assert len(row.traces) == 1


def test_a_second_moment_in_use_that_is_not_finite_is_refused_or_told_by_the_update(row: Row) -> None:
    """The update tells it where the state was made under a trace, in which no number can be looked at."""
    moments = {layer: moment.at[0, 0].set(jnp.nan) for layer, moment in row.case.moments.items()}
    given = row.given if row.method.needs_net else moments
    editor = row.method.build(row.case.model, given, row.config)
    if row.method.needs_moments:
        with pytest.raises(StatisticsError, match=r"second moment of layer \d is not finite"):
            editor.init(row.params)
    _, _, info = row.update(row.params, jax.jit(editor.init)(row.params), row.batches[0])
    assert bool(info.finite) != row.method.needs_moments


def in_bfloat16(row: Row) -> Params:
    """The same parameters, the frozen ones in half the bytes."""
    half = {path: leaf.astype(jnp.bfloat16) for path, leaf in row.params.frozen.items()}
    return Params(row.params.edited, half)


def test_frozen_weights_in_bfloat16_stay_so_and_edited_ones_in_float32(row: Row) -> None:
    params = in_bfloat16(row)
    after, state, info = jax.eval_shape(row.editor.update, params, row.state, row.batches[0])
    assert shapes(after) == shapes(params)
    assert shapes(state) == shapes(row.state)
    assert shapes(info) == shapes(row.first()[2])


@pytest.mark.parametrize("row", quick("alphaedit", "ft", "mend"), indirect=True)
def test_bfloat16_keeps_what_its_digits_can(row: Row) -> None:
    after, _, info = jax.jit(row.editor.update)(in_bfloat16(row), row.state, row.batches[0])
    assert bool(info.finite)
    exact = row.first()[0]
    for path in row.paths:
        start = np.asarray(row.params.edited[path], np.float64)
        change, wanted = (found.edited[path] - start for found in (after, exact))
        assert relative(change, wanted) <= 0.5  # it keeps 3 digits


def copies(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def test_driver_is_the_updates_one_by_one_and_repeats_bit_by_bit(row: Row) -> None:
    run, chunk = chunk_function(row.editor), Chunk(stack(row.batches), None)

    def once() -> tuple[dict[str, Array], Any, Any]:
        return run(copies(row.params.edited), row.params.frozen, copies(row.state), chunk)

    frozen = jax.tree.map(np.array, row.params.frozen)
    edited, state, steps = once()
    assert same_bits(row.params.frozen, frozen)
    untouched = row.params.edited.keys() - set(row.paths)
    assert all(same_bits(edited[path], row.params.edited[path]) for path in untouched)
    assert same_bits(once(), (edited, state, steps))
    if steps.factors:  # the log alone leads to the same bits
        assert same_bits(replayed(row.params.edited, steps.factors, steps.applied), edited)
    if not row.editor.remembers:
        assert same_bits(state, row.state)
    params, expected_state = row.params, row.state
    for i, requests in enumerate(row.batches):
        before = params
        params, expected_state, info = row.update(params, expected_state, requests)
        assert bool(steps.applied[i])
        for path in row.paths:
            change = params.edited[path] - before.edited[path]
            assert float(steps.delta_norm[path][i]) == pytest.approx(float(jnp.linalg.norm(change)), rel=1e-3)
            assert float(steps.norm[path][i]) == pytest.approx(
                float(jnp.linalg.norm(params.edited[path])), rel=1e-5
            )
        assert sorted(steps.metrics) == sorted(info.metrics)
    for path in row.paths:
        start = np.asarray(row.params.edited[path], np.float64)
        assert relative(edited[path] - start, params.edited[path] - start) <= 1e-3
    assert shapes(state) == shapes(expected_state)


@pytest.mark.parametrize(
    "row", quick("memit", "betaedit", "lyaplock", "mend", "ultraedit", "stableedit"), indirect=True
)
def test_many_sequences_at_once_keep_every_shape_and_precision(row: Row) -> None:
    """Tracing tells it: what is vmapped in another precision than it was written in cannot be traced."""
    edited, state, batches = (
        jax.tree.map(lambda x: stack([x] * 2), tree)
        for tree in (row.params.edited, row.state, stack(row.batches))
    )
    after, later, steps = jax.eval_shape(
        many_function(row.editor), edited, row.params.frozen, state, Chunk(batches, None)
    )
    assert shapes(after) == shapes(edited)
    assert shapes(later) == shapes(state)
    assert steps.applied.shape == (2, len(BATCHES))
