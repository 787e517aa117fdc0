"""What editors without value optimisation start from: the factors of the edit loss's gradient, token by token.

The gradient of a loss with respect to a matrix is a sum over tokens, `sum_t u_t v_t^T`, of the layer's input u (the
key) and the gradient v of the loss with respect to its output (Mitchell et al. 2022, arXiv 2110.11309).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.linalg import all_applied, all_finite, dense
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.models.probed import insert_probes
from jaxedit.types import Delta, EditInfo, LowRank, Params, Requests, State

Tokens = Literal["all", "answer"]


@dataclass(frozen=True)
class FeatureConfig:
    """Which matrices are edited, and from which tokens."""

    layers: tuple[int, ...]
    targets: tuple[str, ...] = ("mlp.down",)  # linear layers of a block
    tokens: Tokens = "answer"  # every token of prompt and target, or those that predict a target token


class Pairs(NamedTuple):
    """Keys and output gradients of n tokens at one linear layer; rows that are not `real` are zero."""

    key: Float[Array, "n d_in"]
    gradient: Float[Array, "n d_out"]
    real: Bool[Array, "n"]  # a token of a fact with weight, whose output the loss depends on

    @property
    def joined(self) -> Float[Array, "n d_in+d_out"]:
        """Key and gradient of every token as one vector."""
        return jnp.concatenate([self.key, self.gradient], axis=-1)

    @property
    def shape(self) -> str:
        """Name of the matrix's shape."""
        return shape_name((self.key.shape[-1], self.gradient.shape[-1]))


class Start(NamedTuple):
    """Hidden states to go on from, where the layers below are not to be run again."""

    layer: int  # they are its input
    hidden: Float[Array, "N T d_model"]


class Features(NamedTuple):
    """Of a batch of B facts, by path of the matrix."""

    pairs: dict[str, Pairs]
    loss: Float[Array, "B"]  # mean target NLL of every fact, before the edit


def token_features(
    model: Model,
    params: Params,
    requests: Requests,
    paths: Sequence[str],
    tokens: Tokens,
    start: Start | None = None,
) -> Features:
    """The pairs of the edit loss at every path: n = B (P + S) for all tokens, B T for the answer's.

    The loss is the sum over facts of the mean target NLL on the bare prompt, teacher forced: a fact's pairs are
    the same in any batch. With all tokens `sum u v^T` is its gradient with respect to the matrix. `start` holds the
    rows of `whole_rows` at or below the first of these matrices' layers.
    """
    rows, valid, predict_at = whole_rows(requests)
    at, mask = positions(valid), causal_mask(valid)
    counted = requests.target_mask / jnp.maximum(requests.target_mask.sum(axis=-1, keepdims=True), 1)

    def loss(shifts: dict[str, Array]):
        decoder = model.bind(params)
        probes = insert_probes(decoder, shifts)
        begin = Start(0, decoder.embed(rows, at)) if start is None else start
        rest = range(begin.layer, model.config.n_layers)
        h, _, _ = decoder.run(begin.hidden, rest, position=at, mask=mask)
        h = jnp.take_along_axis(h, predict_at[..., None], axis=1)
        log_p = jax.nn.log_softmax(decoder.logits(h))
        nll = -jnp.take_along_axis(log_p, requests.target[..., None], axis=-1)[..., 0]
        nll = jnp.sum(nll * counted, axis=-1)
        return jnp.sum(nll * requests.weight), (nll, {path: p.seen[...] for path, p in probes.items()})

    zeros = {path: jnp.zeros((*rows.shape, model.shapes[path][1])) for path in paths}
    gradients, (nll, keys) = jax.grad(loss, has_aux=True)(zeros)
    chosen, read = (valid, None) if tokens == "all" else (requests.target_mask, predict_at)
    chosen = chosen & (requests.weight > 0)[:, None]
    return Features({path: _pairs(keys[path], gradients[path], chosen, read) for path in paths}, nll)


def _pairs(key: Array, gradient: Array, chosen: Bool[Array, "B M"], at: Array | None) -> Pairs:
    if at is not None:
        key, gradient = (jnp.take_along_axis(x, at[..., None], axis=1) for x in (key, gradient))
    key, gradient = (x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (key, gradient))
    real = chosen.reshape(-1) & (gradient != 0).any(axis=-1)
    return Pairs(jnp.where(real[:, None], key, 0), jnp.where(real[:, None], gradient, 0), real)


def count_pairs(requests: Requests, tokens: Tokens) -> int:
    """The n of `token_features`, padding included."""
    return requests.target.size if tokens == "answer" else whole_rows(requests)[0].size


def of_facts(pairs: Pairs, chosen: Bool[Array, "B"]) -> Pairs:
    """The pairs of the chosen facts alone; the others' are not real."""
    real = pairs.real & jnp.repeat(chosen, len(pairs.real) // len(chosen))
    key, gradient = (jnp.where(real[:, None], x, 0) for x in (pairs.key, pairs.gradient))
    return Pairs(key, gradient, real)


def shape_name(shape: tuple[int, ...]) -> str:
    """ "{d_in}x{d_out}"."""
    return "x".join(map(str, shape))


def by_shape(model: Model, paths: Iterable[str]) -> dict[str, list[str]]:
    """The matrices of every shape, sorted: they share what is learned or remembered."""
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(shape_name(model.shapes[path]), []).append(path)
    return groups


def pays(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether factors of this rank are kept for a matrix of this shape: below its smaller side."""
    return rank < min(shape)


def compact(delta: LowRank) -> Delta:
    """The change as it is where its factors pay, else as one matrix."""
    shape = (delta.left.shape[0], delta.right.shape[1])
    return delta if pays(delta.left.shape[1], shape) else dense(delta)


def written(
    params: Params, state: State, deltas: dict[str, Delta], metrics: dict[str, Array]
) -> tuple[Params, State, EditInfo]:
    """The update that adds these changes; all are dense where one is, since a run keeps factors of all or of none."""
    if not all(isinstance(delta, LowRank) for delta in deltas.values()):
        deltas = {path: dense(delta) for path, delta in deltas.items()}
    changed, deltas = all_applied(params.edited, deltas)
    info = EditInfo(deltas, metrics, all_finite(changed.values()))
    return Params(params.edited | changed, params.frozen), state, info
