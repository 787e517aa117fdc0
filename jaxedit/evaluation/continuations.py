"""Log-likelihood of given continuations of given tokens, of any lengths."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params

POSITIONS = 64  # whose distributions over the vocabulary are held at once
SMALLEST_ROW = 32


class Continued(NamedTuple):
    """What a model says of n continuations."""

    log_p: Float[np.ndarray, "n"]  # of all tokens of the continuation, in nats
    greedy: Bool[np.ndarray, "n"]  # whether greedy decoding writes it


def continuations(
    model: Model,
    params: Params | dict[str, Array],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int,
) -> Continued:
    """Reads pairs of context and continuation, neither empty, `batch` of about the same length at a time."""
    log_p, greedy = np.zeros(len(pairs), np.float64), np.zeros(len(pairs), bool)
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        rows = [pairs[i] for i in chosen] + [pairs[chosen[0]]] * (batch - len(chosen))
        found = jax.device_get(read_continuations(model, params, *_padded(rows)))
        log_p[chosen], greedy[chosen] = (x[: len(chosen)] for x in found)
    return Continued(log_p, greedy)


@jax.jit
def read_continuations(
    model: Model,
    params: Params | dict[str, Array],
    tokens: Int[Array, "N L"],
    valid: Bool[Array, "N L"],
    target: Int[Array, "N C"],
    target_mask: Bool[Array, "N C"],
    predict_at: Int[Array, "N C"],
) -> tuple[Float[Array, "N"], Bool[Array, "N"]]:
    """The fields of `Continued` for one batch of left-aligned rows."""
    decoder, at = model.bind(params), positions(valid)
    layers = range(model.config.n_layers)
    h, _, _ = decoder.run(decoder.embed(tokens, at), layers, position=at, mask=causal_mask(valid))
    picked = jnp.take_along_axis(h, predict_at[..., None], axis=1).reshape(target.size, -1)

    def one(pair: tuple[Float[Array, "d"], Int[Array, ""]]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        log_p = jax.nn.log_softmax(decoder.logits(pair[0]))
        return log_p[pair[1]], log_p.argmax() == pair[1]

    found = jax.lax.map(one, (picked, target.reshape(-1)), batch_size=POSITIONS)
    log_p, hit = (x.reshape(target.shape) for x in found)
    return jnp.where(target_mask, log_p, 0.0).sum(axis=-1), (hit | ~target_mask).all(axis=-1)


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[np.ndarray, ...]:
    """The arguments of `read_continuations`; both lengths are powers of two, for few programs."""
    length = _power(max(len(a) + len(b) - 1 for a, b in rows), SMALLEST_ROW)
    width = _power(max(len(b) for _, b in rows), 1)
    tokens, target = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), width), np.int32)
    sizes, counts, first = (np.zeros((len(rows), 1), np.int32) for _ in range(3))
    for i, (context, continuation) in enumerate(rows):
        ids = [*context, *continuation][:-1]
        tokens[i, : len(ids)], target[i, : len(continuation)] = ids, continuation
        sizes[i], counts[i], first[i] = len(ids), len(continuation), len(context) - 1
    steps = np.arange(width, dtype=np.int32)
    predict_at = first + np.minimum(steps, counts - 1)
    return tokens, np.arange(length) < sizes, target, steps < counts, predict_at


def _power(size: int, smallest: int) -> int:
    return max(smallest, 1 << (size - 1).bit_length())
