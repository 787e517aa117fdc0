"""The vocabulary: what flows between the rooms of this library.

Sizes in shapes: B facts in a batch, C contexts of a prompt, R = C + 1 rows (the contexts, then the
KL row), P prefix tokens, S tail tokens, T target tokens, N probe rows of a fact, L tokens of a probe row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PyTree

State: TypeAlias = PyTree
"""What an editor remembers between updates; never model parameters."""


class Params(NamedTuple):
    """Model parameters in two flat dicts keyed by dotted parameter path.

    Only `edited` is ever replicated, carried through a scan, or logged. `frozen` comes back from an
    update as the same object.
    """

    edited: dict[str, Float[Array, "..."]]  # float32 masters of what an editor writes: matrices [in, out]
    frozen: dict[str, Array]  # everything else, in the compute dtype


class Requests(NamedTuple):
    """B facts to write, split at the lookup token (the subject's last token), ready for the accelerator.

    Row `c < C` is context `c` of the prompt, row 0 the bare prompt. The last row is "{subject} is a" up
    to the lookup token, where the KL term is read. Everything before the lookup token is `prefix`
    (right-aligned); the lookup token, the rest of the prompt and all but the last target token are `tail`
    (left-aligned). So `prefix + tail` is one contiguous sequence.
    """

    prefix: Int[Array, "B R P"]
    prefix_mask: Bool[Array, "B R P"]
    tail: Int[Array, "B R S"]
    tail_mask: Bool[Array, "B R S"]
    target: Int[Array, "B T"]
    target_mask: Bool[Array, "B T"]
    predict_at: Int[Array, "B C T"]  # index into the tail whose next-token distribution predicts target t
    weight: Float[Array, "B"]  # 1 for a fact, 0 for padding
    case: Int[Array, "B"]  # position of the fact in its fact set; -1 for padding


class TextBatch(NamedTuple):
    """N rows of running text, L tokens each, for editors that learn from text instead of facts."""

    tokens: Int[Array, "N L"]
    valid: Bool[Array, "N L"]  # False on padding


class Probes(NamedTuple):
    """Prompts on which B facts are scored: N rows a fact, each read for two targets (new, true).

    A row is one packed sequence: the prompt, then all but the last token of the new target, then the
    same of the true target. `branch` is 0 on the prompt, 1 and 2 on the targets, -1 on padding; a token
    attends to the prompt and to its own branch. One forward pass so yields both likelihoods.
    """

    tokens: Int[Array, "B N L"]
    position: Int[Array, "B N L"]
    branch: Int[Array, "B N L"]
    target: Int[Array, "B N 2 T"]
    target_mask: Bool[Array, "B N 2 T"]
    predict_at: Int[Array, "B N 2 T"]
    kind: Int[Array, "B N"]  # REWRITE, PARAPHRASE, NEIGHBORHOOD, or -1 for padding


REWRITE, PARAPHRASE, NEIGHBORHOOD = 0, 1, 2


class Questions(NamedTuple):
    """N multiple-choice questions, O options each: what of them differs from one to the next, L tokens a row.

    A row is one packed sequence as of `Probes`: the end of the prompt (branch 0), then all but the last token of
    every option (branch 1 + o). So one forward pass reads all options.
    """

    tokens: Int[Array, "N L"]
    position: Int[Array, "N L"]
    branch: Int[Array, "N L"]  # -1 on padding
    target: Int[Array, "N O T"]
    target_mask: Bool[Array, "N O T"]  # False throughout where there is no such option
    predict_at: Int[Array, "N O T"]
    item: Int[Array, "N"]  # number of the question; -1 for padding


class Quiz(NamedTuple):
    """Questions whose prompts begin with the same tokens, in batches of one size and of several lengths."""

    prefix: Int[Array, "P"]  # what they begin with, left-aligned
    prefix_mask: Bool[Array, "P"]
    batches: tuple[Questions, ...]
    gold: Int[Array, "n"]  # the right option by number of the question
    left_out: int  # questions too long for the model


class TracePrompts(NamedTuple):
    """Prompts of B facts for causal tracing, split at the subject's first token.

    What comes before it is `prefix` (right-aligned); no state there depends on the subject. The subject and
    the rest of the prompt are `tail` (left-aligned). So `prefix + tail` is one contiguous sequence.
    """

    prefix: Int[Array, "B P"]
    prefix_mask: Bool[Array, "B P"]
    tail: Int[Array, "B S"]
    tail_mask: Bool[Array, "B S"]
    kind: Int[Array, "B S"]  # FIRST_SUBJECT ... LAST, or -1 for padding
    target: Int[Array, "B"]  # the object's first token
    weight: Float[Array, "B"]  # 1 for a fact, 0 for padding
    case: Int[Array, "B"]  # position of the fact in its fact set; -1 for padding


# A subject of one token is its last token; so is that of a prompt which it ends.
FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_AFTER, FURTHER, LAST = range(6)


class LowRank(NamedTuple):
    """A change of a matrix stored `[in, out]`: `Delta W = left @ right`."""

    left: Float[Array, "in r"]
    right: Float[Array, "r out"]


Delta: TypeAlias = LowRank | Float[Array, "in out"]


class Solved(NamedTuple):
    """What a closed form wanted of one matrix, and its solution; rows of padding facts are zero."""

    keys: Float[Array, "n in"]
    residual: Float[Array, "n out"]  # to be added to what the matrix gives at the keys
    delta: Delta


class Site(NamedTuple):
    """The matrix that an update is about to change."""

    path: str
    weight: Float[Array, "in out"]  # before the update
    solved: Solved | None  # None for gradient editors


Rewrite: TypeAlias = Callable[[Site, Delta, Any], tuple[Delta, Any]]
"""`(site, delta, carry) -> (delta, carry)`: changes the update of one matrix before it is written."""


class EditInfo(NamedTuple):
    """What one update did, arrays only, so that it stacks under `lax.scan`.

    `delta` holds the change of every edited parameter: `LowRank` for closed forms and adapters, a dense array
    of its shape for other gradient editors. `metrics` are the editor's own figures: per-fact arrays `[B]`, curves
    `[steps, B]`, or scalars.
    """

    delta: dict[str, Delta]
    metrics: dict[str, Array]
    finite: Bool[Array, ""]  # False where any number of the update is not finite


def as_they_are(params: Params, state: State) -> Params:
    """The parameters, untouched."""
    return params


class Editor(NamedTuple):
    """An editing method as pure functions; hyper-parameters are closed over.

    `init(params)` makes the state. `update(params, state, requests)` returns new parameters, the new
    state and an account of what was done; it never changes its arguments. `requests` are `Requests`, or a
    `TextBatch` for editors that learn from text. Where `remembers` is False the state is a constant that
    `update` hands back as it came, so that it need not be saved.

    Editors that write several matrices in turn, each solved on those just written, also give `layerwise`:
    `(params, state, requests, rewrite, carry) -> (params, state, info, carry)`, the same update with every
    matrix's change passed through `rewrite` before the next is solved.

    Editors with moments of all facts so far also give `observe(params, state, requests) -> state`: it counts
    requests and writes nothing.

    `finalize(params, state)` gives the parameters to use once a sequence has ended; it is pure, so that a
    sequence may be looked at midway and goes on as if it had not been.
    """

    init: Callable[[Params], State]
    update: Callable[[Params, State, Any], tuple[Params, State, EditInfo]]
    remembers: bool = True
    layerwise: (
        Callable[[Params, State, Requests, Rewrite, Any], tuple[Params, State, EditInfo, Any]] | None
    ) = None
    finalize: Callable[[Params, State], Params] = as_they_are
    observe: Callable[[Params, State, Requests], State] | None = None


class Trace(NamedTuple):
    """Intermediate vectors of a partial run, by layer index; empty where nothing was asked for.

    Outputs of MLP and attention are those of their last matrix, bias included. Where a norm follows, the
    residual stream gains something else.
    """

    key: dict[int, Any]  # input of the down-projection, [..., d_k]
    mlp: dict[int, Any]  # output of the down-projection: the editors' value, [..., d_model]
    residual: dict[int, Any]  # residual stream after the block, [..., d_model]
    attention: dict[int, Any]  # output of the attention's output projection, [..., d_model]
