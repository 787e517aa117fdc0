"""What each transform promises, on random matrices over a sequence of updates."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.editors.transforms import (
    TRANSFORMS,
    Transform,
    chain,
    clip_norm,
    identity,
    mose,
    norm_lock,
    null_space,
    prune,
    read_transform,
    rect,
    restrained,
    revive,
    scale,
    spectral_cap,
    spectrum_lock,
    sphere,
)
from jaxedit.editors.transforms.rect import most_changed
from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.linalg import dense
from jaxedit.types import EditInfo, Editor, LowRank, Params, Site, Solved
from tests.cases import equations, relative, same_bits
from tests.editors.transforms.stream import (
    D_IN,
    D_OUT,
    FACTS,
    GIVEN,
    GIVEN_LOW_RANK,
    PATH,
    RIDGE,
    STEPS,
    Stream,
    compiled,
    requests,
    sequence,
    weights,
)

EXAMPLES = {
    "scale": "scale:0.5",
    "clip-norm": "clip-norm:0.3",
    "rect": "rect:0.4",
    "prune": "prune",
    "revive": "revive:0.6",
    "sphere": "sphere:0.8,0.5",
    "null-space": "null-space:0.02",
    "spectral-cap": "spectral-cap:1.0",
    "spectrum-lock": "spectrum-lock",
    "norm-lock": "norm-lock",
    "mose": "mose:1.0",
}
EXACT = 1e-6  # of the matrix: float32 rounds every write


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream()


def every(compensated: bool = True) -> list[str]:
    """An example of each row of the table, and one of compensation."""
    assert EXAMPLES.keys() == TRANSFORMS.keys(), "a transform without an example"
    return [*EXAMPLES.values(), *(["compensate:rect:0.4"] if compensated else [])]


def built(text: str, stream: Stream) -> Transform:
    return read_transform(text).build(stream.moments)


@functools.cache
def chained(text: str) -> Editor:
    """The transform on the closed form where it needs keys, else on dense updates."""
    transform = built(text, Stream())
    return chain(RIDGE if transform.needs_keys else GIVEN, transform)


@pytest.mark.parametrize("text", every())
def test_matrices_are_the_old_ones_plus_the_stated_delta(stream: Stream, text: str) -> None:
    reached, before = sequence(chained(text), stream), np.asarray(stream.weight, np.float64)
    for (_, _, info), after in zip(reached, weights(reached), strict=True):
        assert bool(info.finite)
        delta = info.delta[PATH]
        assert (delta.left if isinstance(delta, LowRank) else delta).dtype == jnp.float32
        assert relative(after, before + np.asarray(dense(delta), np.float64)) <= EXACT
        before = after


@pytest.mark.parametrize("text", every())
def test_an_update_of_padding_changes_neither_matrices_nor_states(stream: Stream, text: str) -> None:
    editor = chained(text)
    update = compiled(editor)
    params, state, _ = update(stream.params, editor.init(stream.params), requests())
    after, later, info = update(params, state, requests((0.0,) * FACTS))
    assert same_bits(after, params)
    assert same_bits(later.transforms, state.transforms)
    assert not np.any(dense(info.delta[PATH]))
    assert bool(info.finite)


@pytest.mark.parametrize("text", every(compensated=False))
def test_rows_of_padding_facts_change_nothing(stream: Stream, text: str) -> None:
    """In the factors and in the keys alike."""
    transform = built(text, stream)
    delta = LowRank(stream.updates.left[0], stream.updates.right[0])
    padded = LowRank(jnp.pad(delta.left, ((0, 0), (0, 2))), jnp.pad(delta.right, ((0, 2), (0, 0))))
    keys = (stream.keys[0], jnp.pad(stream.keys[0], ((0, 2), (0, 0))))
    found = []
    for one, k in zip((delta, padded), keys, strict=True):
        site = Site(PATH, stream.weight, Solved(k, one.right, one))
        changed, _ = transform.apply(one, transform.init(PATH, stream.weight), site)
        found.append(np.asarray(dense(changed)))
    assert relative(found[1], found[0]) <= EXACT


@pytest.mark.parametrize("text", every())
def test_states_share_no_memory_with_matrices_or_moments(text: str) -> None:
    own = Stream(seed=1)
    transform = built(text, own)
    for leaf in jax.tree.leaves(transform.init(PATH, own.weight)):
        leaf.delete()
    assert not own.weight.is_deleted()
    assert not own.moment.is_deleted()


@pytest.mark.parametrize("text", every())
def test_no_product_is_below_highest_precision_and_decompositions_are_in_float64(
    stream: Stream, text: str
) -> None:
    transform, delta = built(text, stream), stream.dense_updates[0]
    factors = LowRank(stream.updates.left[0], stream.updates.right[0])
    solved = Solved(stream.keys[0], factors.right, factors)

    def whole(weight: jax.Array) -> jax.Array:
        state = transform.init(PATH, weight)
        changed, state = transform.apply(delta, state, Site(PATH, weight, solved))
        return transform.finalize(weight + dense(changed), state)

    found = list(equations(jax.make_jaxpr(whole)(stream.weight).jaxpr))
    for equation in found:
        if equation.primitive.name == "dot_general":
            assert set(equation.params["precision"] or ()) == {jax.lax.Precision.HIGHEST}
        if equation.primitive.name in ("svd", "eigh"):
            assert {str(x.aval.dtype) for x in equation.invars} == {"float64"}


@pytest.mark.parametrize("name", [name for name, row in TRANSFORMS.items() if row.low_rank])
def test_separable_transforms_keep_updates_low_rank_and_change_them_as_dense_ones(
    stream: Stream, name: str
) -> None:
    transform = built(EXAMPLES[name], stream)
    low = sequence(chain(GIVEN_LOW_RANK, transform), stream)
    full = sequence(chain(GIVEN, transform), stream)
    for (_, _, info), (_, _, expected) in zip(low, full, strict=True):
        delta = info.delta[PATH]
        assert isinstance(delta, LowRank)
        assert delta.left.shape == (D_IN, FACTS)
        assert relative(dense(delta), expected.delta[PATH]) <= 1e-5


@pytest.mark.parametrize("editor", [GIVEN, GIVEN_LOW_RANK, RIDGE], ids=["dense", "low rank", "closed form"])
def test_identity_is_the_bare_editor_to_the_bit(stream: Stream, editor: Editor) -> None:
    for bare, same in zip(sequence(editor, stream), sequence(chain(editor, identity()), stream), strict=True):
        assert same_bits(same[0], bare[0])
        assert same_bits(same[2].delta, bare[2].delta)


def test_transforms_act_from_left_to_right(stream: Stream) -> None:
    def norm(*transforms: Transform) -> float:
        (_, _, info), *_ = sequence(chain(GIVEN, *transforms), stream, 1)
        assert float(info.metrics[f"proposed_norm/{PATH}"]) == pytest.approx(proposed, rel=1e-6)
        return float(jnp.linalg.norm(info.delta[PATH]))

    proposed = float(jnp.linalg.norm(stream.dense_updates[0]))
    assert norm(clip_norm(0.1), scale(2.0)) == pytest.approx(0.2, rel=1e-6)
    assert norm(scale(2.0), clip_norm(0.1)) == pytest.approx(0.1, rel=1e-6)


def test_chain_of_a_chain_is_the_chain_of_both(stream: Stream) -> None:
    def final(editor: Editor) -> Params:
        params, state, _ = sequence(editor, stream)[-1]
        return editor.finalize(params, state)

    for editor in (RIDGE, GIVEN):
        nested = chain(chain(editor, rect(0.4), prune()), scale(0.5))
        assert same_bits(final(nested), final(chain(editor, rect(0.4), prune(), scale(0.5))))


def test_scaling_is_linear(stream: Stream) -> None:
    editor = GIVEN
    twice = weights(sequence(chain(editor, scale(0.5), scale(0.5)), stream))
    once = weights(sequence(chain(editor, scale(0.25)), stream))
    plain, start = weights(sequence(editor, stream)), np.asarray(stream.weight, np.float64)
    for a, b, c in zip(twice, once, plain, strict=True):
        assert np.array_equal(a, b)
        assert relative(a - start, (c - start) / 4) <= 1e-5


def test_norm_clip_bounds_every_update_and_passes_small_ones_to_the_bit(stream: Stream) -> None:
    sizes = np.linalg.norm(np.asarray(stream.dense_updates), axis=(1, 2))
    bound = 1.001 * float(np.median(sizes))
    for editor in (GIVEN, GIVEN_LOW_RANK):
        bare, found = sequence(editor, stream), sequence(chain(editor, clip_norm(bound)), stream)
        for size, (_, _, info), (_, _, proposed) in zip(sizes, found, bare, strict=True):
            norm = np.linalg.norm(np.asarray(dense(info.delta[PATH]), np.float64))
            assert norm == pytest.approx(min(size, bound), rel=1e-5)
            assert same_bits(info.delta, proposed.delta) == (size <= bound)


def test_revive_leaves_the_dominant_directions_as_they_are(stream: Stream) -> None:
    start = np.asarray(stream.weight, np.float64)
    U, s, Vt = np.linalg.svd(start)
    k = int(np.searchsorted(np.cumsum(s**2), 0.6 * np.sum(s**2))) + 1
    assert 1 < k < D_OUT
    for after in weights(sequence(chain(GIVEN_LOW_RANK, revive(0.6)), stream)):
        scale = np.linalg.norm(start)
        assert np.abs(U[:, :k].T @ (after - start)).max() <= EXACT * scale
        assert np.abs((after - start) @ Vt[:k].T).max() <= EXACT * scale
        moved = U[:, k:].T @ (after - start) @ Vt[k:].T
        assert np.linalg.norm(moved) > 1e-2
        outside = U[:, D_OUT:].T @ (after - start)  # what a thin decomposition would delete
        assert np.linalg.norm(outside) > 1e-2


def test_null_space_leaves_what_the_text_uses_and_asks_for_its_moment(stream: Stream) -> None:
    eigenvalues, vectors = np.linalg.eigh(np.asarray(stream.moment, np.float64))
    used = vectors[:, eigenvalues >= 0.02]
    assert 0 < used.shape[1] < D_IN
    (_, _, info), *_ = sequence(chain(GIVEN_LOW_RANK, null_space(stream.moments)), stream, 1)
    delta = np.asarray(dense(info.delta[PATH]), np.float64)
    assert np.linalg.norm(used.T @ delta) <= EXACT * np.linalg.norm(delta)
    with pytest.raises(StatisticsError, match=f"no second moment for {PATH}; there are \\['other'\\]"):
        null_space({"other": stream.moment}).init(PATH, stream.weight)


def test_null_space_that_would_leave_nothing_to_write_is_refused(stream: Stream) -> None:
    least = float(np.linalg.eigvalsh(np.asarray(stream.moment, np.float64))[0])
    with pytest.raises(ConfigError, match=f"no direction of {PATH} is left to write along"):
        null_space(stream.moments, 0.5 * least).init(PATH, stream.weight)


ON_MATRICES = (
    "revive:0.5",
    "sphere",
    "spectral-cap:0.5",
    "spectrum-lock",
    "prune",
    "compensate:spectrum-lock",
)


@pytest.mark.parametrize("text", ON_MATRICES)
def test_what_is_no_matrix_is_left_to_the_editor(stream: Stream, text: str) -> None:
    """Biases and scales of norms, among the parameters of editors that write all; the matrix is transformed."""
    vector = jnp.arange(1.0, 1.0 + D_OUT)
    params = Params({PATH: stream.weight, "bias": vector}, {})
    deltas = {PATH: 3 * stream.weight, "bias": 0.5 * vector}

    def update(params: Params, state: Any, requests: Any) -> Any:
        edited = {path: weight + deltas[path] for path, weight in params.edited.items()}
        return Params(edited, params.frozen), state, EditInfo(deltas, {}, jnp.bool_(True))

    editor = chain(Editor(lambda params: (), update), read_transform(text).build({}))
    after, state, info = editor.update(params, editor.init(params), requests())
    final = editor.finalize(after, state)
    for found in (after, final):
        assert np.array_equal(found.edited["bias"], 1.5 * vector)
    assert np.array_equal(info.delta["bias"], deltas["bias"])
    assert relative(final.edited[PATH], 4 * stream.weight) > 1e-2


def test_spectrum_lock_keeps_every_singular_value(stream: Stream) -> None:
    spectrum = np.linalg.svd(np.asarray(stream.weight, np.float64), compute_uv=False)
    free = weights(sequence(GIVEN, stream))
    locked = weights(sequence(chain(GIVEN, spectrum_lock()), stream))
    for a, b in zip(free, locked, strict=True):
        assert np.abs(np.linalg.svd(a, compute_uv=False) - spectrum).max() > 1e-2
        assert np.abs(np.linalg.svd(b, compute_uv=False) - spectrum).max() <= EXACT * spectrum[0]
        assert relative(b, stream.weight) > 1e-2


def test_spectrum_lock_writes_the_nearest_matrix_of_that_spectrum(stream: Stream) -> None:
    spectrum = np.linalg.svd(np.asarray(stream.weight, np.float64), compute_uv=False)
    (free, *_), (locked, *_) = (
        weights(sequence(editor, stream, 1))
        for editor in (GIVEN_LOW_RANK, chain(GIVEN_LOW_RANK, spectrum_lock()))
    )
    distance = np.linalg.norm(np.linalg.svd(free, compute_uv=False) - spectrum)
    assert np.linalg.norm(locked - free) == pytest.approx(distance, rel=1e-4)


def test_norm_lock_keeps_the_norm_and_the_direction(stream: Stream) -> None:
    norm = np.linalg.norm(np.asarray(stream.weight, np.float64))
    (free, *_), locked = (
        weights(sequence(editor, stream)) for editor in (GIVEN_LOW_RANK, chain(GIVEN_LOW_RANK, norm_lock()))
    )
    assert all(np.linalg.norm(after) == pytest.approx(norm, rel=EXACT) for after in locked)
    assert relative(locked[0] / norm, free / np.linalg.norm(free)) <= EXACT


def test_norm_lock_leaves_a_bias_of_zeros_that_nothing_is_added_to() -> None:
    lock, zero = norm_lock(), jnp.zeros(D_OUT)
    delta, norm = lock.apply(zero, lock.init("bias", zero), Site("bias", zero, None))
    assert same_bits(delta, zero)
    assert float(norm) == 0


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_spectral_cap_bounds_the_largest_singular_value_and_is_idle_below(
    stream: Stream, factor: float
) -> None:
    limit = factor * np.linalg.norm(np.asarray(stream.weight, np.float64), 2)
    free, capped = (
        sequence(editor, stream)
        for editor in (
            GIVEN,
            chain(GIVEN, spectral_cap(factor)),
        )
    )
    assert (np.linalg.norm(weights(free)[-1], 2) > limit) == (factor == 1.0)
    assert all(np.linalg.norm(after, 2) <= limit * (1 + EXACT) for after in weights(capped))
    assert same_bits([x[0] for x in capped], [x[0] for x in free]) == (factor == 10.0)


def test_mose_keeps_the_spectrum_and_brings_values_nearer(stream: Stream) -> None:
    spectrum = np.linalg.svd(np.asarray(stream.weight, np.float64), compute_uv=False)
    reached = weights(sequence(chain(RIDGE, mose(stream.moments, 0.1)), stream))
    for after in reached:
        assert np.abs(np.linalg.svd(after, compute_uv=False) - spectrum).max() <= EXACT * spectrum[0]

    def cosines(weight: np.ndarray) -> np.ndarray:
        outputs, values = np.asarray(stream.keys[0]) @ weight, np.asarray(stream.values[0])
        lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(values, axis=1)
        return np.sum(outputs * values, axis=1) / lengths

    assert cosines(reached[0]).mean() > cosines(np.asarray(stream.weight)).mean() + 0.3


def test_prune_leaves_updates_alone_and_restrains_their_total_once_at_the_end() -> None:
    stream, editor = Stream(size=3.0), chained("prune")
    plain, found = sequence(GIVEN, stream), sequence(editor, stream)
    assert same_bits([x[0] for x in found], [x[0] for x in plain])
    params, state, _ = found[-1]
    finalize = jax.jit(editor.finalize)
    final = finalize(params, state)
    assert same_bits(final.edited[PATH], jax.jit(restrained)(params.edited[PATH], stream.weight))
    change = np.asarray(final.edited[PATH], np.float64) - np.asarray(stream.weight, np.float64)
    total = np.linalg.svd(weights(found)[-1] - np.asarray(stream.weight), compute_uv=False)
    limit = np.linalg.norm(np.asarray(stream.weight, np.float64), 2)
    assert total[0] > limit > total[-1]
    expected = np.where(total > limit, np.log(total / limit) + limit, total)
    assert np.allclose(np.linalg.svd(change, compute_uv=False), sorted(expected)[::-1], atol=1e-5)
    assert params.edited[PATH] is not final.edited[PATH]
    assert same_bits(finalize(params, state), final), "looking twice changes nothing"


@pytest.mark.parametrize("text", every(compensated=False))
def test_what_acts_at_the_end_alone_is_marked_so(stream: Stream, text: str) -> None:
    """It hands every update back as it came; all others take something from one that is large enough."""
    transform, delta = built(text, stream), 1e3 * stream.dense_updates[0]
    keys = stream.keys[0]
    solved = Solved(keys, stream.values[0], LowRank(jnp.zeros((D_IN, FACTS)), jnp.zeros((FACTS, D_OUT))))
    changed, _ = transform.apply(
        delta, transform.init(PATH, stream.weight), Site(PATH, stream.weight, solved)
    )
    assert (changed is delta) == read_transform(text).row.at_end


def test_prune_leaves_a_matrix_to_the_bit_where_nothing_exceeds() -> None:
    editor = chained("prune")
    params, state, _ = sequence(editor, Stream(size=1e-2))[-1]
    assert same_bits(jax.jit(editor.finalize)(params, state), params)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
def test_rect_keeps_exactly_the_stated_share_as_it_was(stream: Stream, share: float) -> None:
    proposed = sequence(GIVEN, stream, 1)[0][2].delta[PATH]
    (params, _, info), *_ = sequence(chain(GIVEN, rect(share)), stream, 1)
    kept = np.asarray(info.delta[PATH])
    assert np.count_nonzero(kept) == round(share * kept.size)
    assert np.array_equal(kept[kept != 0], np.asarray(proposed)[kept != 0])
    dropped = kept == 0
    assert np.array_equal(np.asarray(params.edited[PATH])[dropped], np.asarray(stream.weight)[dropped])


@pytest.mark.parametrize("share", [0.1, 0.33, 0.4, 0.9])
def test_rect_breaks_ties_by_position_and_counts_a_zero_weights_change_as_infinite(share: float) -> None:
    ones = jnp.ones((7, 5))
    tied = np.asarray(most_changed(ones, ones, share)).ravel()
    assert tied.sum() == round(share * 35)
    assert np.array_equal(tied, np.arange(35) < tied.sum())
    delta, weight = ones.at[0, 0].set(0.0), ones.at[0, 0].set(0.0).at[6, 4].set(0.0)
    kept = np.asarray(most_changed(delta, weight, share))
    assert kept.sum() == round(share * 35)
    assert kept[6, 4]
    assert not kept[0, 0]


@pytest.mark.parametrize("text", every())
def test_a_broken_proposal_is_told_whatever_became_of_it(text: str) -> None:
    broken = Stream()
    broken.values = broken.values.at[0, 0, 0].set(jnp.nan)
    broken.dense_updates = broken.dense_updates.at[0, 3, 4].set(jnp.nan)
    (_, _, info), *_ = sequence(chained(text), broken, 1)
    assert not bool(info.finite)


def test_updates_are_transformed_alike_inside_a_loop_over_layers_and_after_it(stream: Stream) -> None:
    """With one matrix the two ways are one."""
    inside = chain(RIDGE, sphere(), rect(0.4))
    after = chain(RIDGE._replace(layerwise=None), sphere(), rect(0.4))
    for a, b in zip(weights(sequence(inside, stream)), weights(sequence(after, stream)), strict=True):
        assert relative(a, b) <= EXACT


def test_a_whole_sequence_in_one_scan_is_the_updates_one_by_one(stream: Stream) -> None:
    """Every transform that needs no keys, in one chain."""
    transforms = [built(text, stream) for text in every()]
    editor = chain(GIVEN, *(one for one in transforms if not one.needs_keys))

    @jax.jit
    def scanned(params: Params):  # type: ignore[no-untyped-def]
        def body(carry, one):  # type: ignore[no-untyped-def]
            params, state, _ = editor.update(*carry, one)
            return (params, state), params.edited[PATH]

        many = jax.tree.map(lambda x: jnp.stack([x] * STEPS), requests())
        return jax.lax.scan(body, (params, editor.init(params)), many)[1]

    for a, b in zip(np.asarray(scanned(stream.params)), weights(sequence(editor, stream)), strict=True):
        assert relative(a, b) <= 1e-5
