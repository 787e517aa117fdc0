"""Compensation: what a transform takes away is not lost, and the editor's own solution is never left."""

import jax
import numpy as np
import pytest
import torch

from jaxedit.editors.transforms import (
    Transform,
    chain,
    clip_norm,
    compensate,
    compose,
    identity,
    null_space,
    prune,
    rect,
    revive,
    spectrum_lock,
)
from jaxedit.types import Editor
from tests.cases import relative, same_bits
from tests.editors.transforms.stream import (
    GIVEN,
    LAM,
    PATH,
    RIDGE,
    RIDGE_WITHOUT_HISTORY,
    Reached,
    Stream,
    sequence,
    weights,
)
from tests.reference import closed_forms
from tests.reference import transforms as oracle

LAW = 1e-5  # float32 rounds every write


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream()


def columns(x: object) -> torch.Tensor:
    return torch.tensor(np.asarray(x, np.float64)).T


def solutions(reached: list[Reached]) -> list[np.ndarray]:
    """S = W - E A^-1 after every update, float64."""
    gaps = [np.asarray(state.transforms[PATH][0].gap, np.float64) for _, state, _ in reached]
    return [weight - gap for weight, gap in zip(weights(reached), gaps, strict=True)]


NONLINEAR = {
    "rect": rect(0.4),
    "spectrum lock": spectrum_lock(),
    "two": compose(rect(0.5), clip_norm(1.0)),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_with_history_the_kept_solution_is_the_one_time_solution(stream: Stream, name: str) -> None:
    """W_t - E_t A_t^-1 = W_0 + the joint solution of all batches up to t."""
    reached = sequence(chain(RIDGE, compensate(NONLINEAR[name])), stream)
    A = closed_forms.preservation(columns(stream.moment), LAM)
    start = columns(stream.weight)
    for t, solution in enumerate(solutions(reached), start=1):
        K, V = (columns(np.concatenate(np.asarray(x[:t]))) for x in (stream.keys, stream.values))
        expected = closed_forms.memit(K, V - start @ K, A)
        assert relative(columns(solution) - start, expected) <= LAW
    assert relative(weights(reached)[-1], solutions(reached)[-1]) > 1e-2, "the transform took nothing away"


def test_without_compensation_rect_leaves_that_solution(stream: Stream) -> None:
    bare = weights(sequence(RIDGE, stream))[-1]
    plain = weights(sequence(chain(RIDGE, rect(0.4)), stream))[-1]
    assert relative(plain, bare) > 1e-2


def test_every_weight_of_a_sequence_is_the_papers_with_rect(stream: Stream) -> None:
    """The recursion in E and A, in float64."""
    batches = [(columns(k), columns(v)) for k, v in zip(stream.keys, stream.values, strict=True)]
    A = closed_forms.preservation(columns(stream.moment), LAM)
    expected = oracle.compensated_sequence(
        columns(stream.weight), batches, A, lambda D, W: oracle.rect(D, W, 0.4)
    )
    reached = weights(sequence(chain(RIDGE, compensate(rect(0.4))), stream))
    for found, (W, _) in zip(reached, expected, strict=True):
        assert relative(columns(found), W) <= LAW


@pytest.mark.parametrize("editor", [RIDGE, RIDGE_WITHOUT_HISTORY], ids=["history", "no history"])
def test_a_linear_projection_acts_on_the_total(stream: Stream, editor: Editor) -> None:
    """W_t - W_0 = Post(S_t - W_0), also where S is a sequence without history."""
    start = np.asarray(stream.weight, np.float64)
    bare = weights(sequence(editor, stream))
    eigenvalues, vectors = np.linalg.eigh(np.asarray(stream.moment, np.float64))
    small = vectors[:, eigenvalues < 0.02]
    projected = compensate(null_space(stream.moments))
    found = weights(sequence(chain(editor, projected), stream))
    for after, own in zip(found, bare, strict=True):
        assert relative(after - start, small @ small.T @ (own - start)) <= LAW


def test_revive_compensated_still_leaves_the_dominant_directions(stream: Stream) -> None:
    start = np.asarray(stream.weight, np.float64)
    dominant = np.linalg.svd(start)[0][:, 0]
    for after in weights(sequence(chain(RIDGE, compensate(revive(0.6))), stream)):
        assert np.abs(dominant @ (after - start)).max() <= 1e-6 * np.linalg.norm(start)


@pytest.mark.parametrize("editor", [RIDGE, GIVEN], ids=["closed form", "dense"])
def test_compensated_identity_is_the_bare_editor(stream: Stream, editor: Editor) -> None:
    found, bare = sequence(chain(editor, compensate(identity())), stream), sequence(editor, stream)
    for a, b in zip(weights(found), weights(bare), strict=True):
        assert relative(a, b) <= 1e-6


def test_without_keys_it_is_error_feedback(stream: Stream) -> None:
    """What was held back comes later: the kept solution is the sum of all proposals."""
    proposals = np.asarray(stream.dense_updates, np.float64)
    transform: Transform = compensate(rect(0.3))
    reached = sequence(chain(GIVEN, transform), stream)
    total = np.asarray(stream.weight, np.float64) + np.cumsum(proposals, axis=0)
    for solution, expected in zip(solutions(reached), total, strict=True):
        assert relative(solution, expected) <= LAW


def test_a_restraint_at_the_end_passes_through() -> None:
    stream, final = Stream(size=3.0), []
    for transform in (prune(), compensate(compose(identity(), prune()))):
        editor = chain(GIVEN, transform)
        params, state, _ = sequence(editor, stream)[-1]
        final.append(jax.jit(editor.finalize)(params, state).edited[PATH])
        assert not same_bits(final[-1], params.edited[PATH])
    assert relative(final[1], final[0]) <= LAW
