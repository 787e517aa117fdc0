"""Running a batch of requests split at the lookup token: what never changes is run once and kept."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.attention import Memory
from jaxedit.models.decoder import Decoder, causal_mask, positions
from jaxedit.models.packing import in_smallest_room, pack, unpack
from jaxedit.models.sharing import owned, owners, shared_packing
from jaxedit.types import Requests, Trace


class Rows(NamedTuple):
    """The N = B * R rows of a batch, flattened, with positions and masks."""

    prefix: Int[Array, "N P"]
    prefix_valid: Bool[Array, "N P"]
    tail: Int[Array, "N S"]
    tail_valid: Bool[Array, "N S"]
    prefix_position: Int[Array, "N P"]
    tail_position: Int[Array, "N S"]

    @property
    def prefix_mask(self) -> Bool[Array, "N P P"]:
        return causal_mask(self.prefix_valid)

    @property
    def tail_mask(self) -> Bool[Array, "N S P+S"]:
        n, s = self.tail.shape
        seen = jnp.broadcast_to(self.prefix_valid[:, None, :], (n, s, self.prefix.shape[1]))
        return jnp.concatenate([seen, causal_mask(self.tail_valid)], axis=-1)

    def take(self, index: Int[Array, "M"]) -> "Rows":
        """A choice of rows."""
        return Rows(*(x[index] for x in self))


class SplitPass(NamedTuple):
    """Hidden states around the edited layers `first..last` under the current weights."""

    prefix_in: Float[Array, "N P d_model"]  # input of layer `first`
    tail_in: Float[Array, "N S d_model"]  # the same for the tail
    tail_out: Float[Array, "N S d_model"]  # output of layer `last`
    memory: dict[int, Memory]  # attention keys and values of the prefix in every layer
    trace: Trace  # at the lookup token, layers first..last: [N, 1, ...]


def rows_of(requests: Requests) -> Rows:
    """All rows of a batch, facts major."""
    prefix, prefix_valid, tail, tail_valid = (x.reshape(-1, x.shape[-1]) for x in requests[:4])
    whole = positions(jnp.concatenate([prefix_valid, tail_valid], axis=-1))
    width = prefix.shape[-1]
    return Rows(prefix, prefix_valid, tail, tail_valid, whole[:, :width], whole[:, width:])


def bare_rows(requests: Requests) -> Int[Array, "B"]:
    """Index of every fact's bare prompt among the flattened rows."""
    facts, rows, _ = requests.prefix.shape
    return jnp.arange(facts) * rows


def split_pass(
    decoder: Decoder, rows: Rows, first: int, last: int, shares: Sequence[float] = ()
) -> SplitPass:
    """Runs prefixes through all layers and tails up to layer `last`, once; `shares` as for `prefix_pass`."""
    prefix_in, memory = prefix_pass(decoder, rows, first, shares)
    at, mask = rows.tail_position, rows.tail_mask
    h = decoder.embed(rows.tail, at)
    tail_in, _, _ = decoder.run(h, range(first), position=at, mask=mask, memory=memory)
    tail_out, trace, _ = decoder.run(
        tail_in,
        range(first, last + 1),
        position=at,
        mask=mask,
        memory=memory,
        trace=("key", "mlp", "residual", "attention"),
        trace_at=jnp.zeros((rows.tail.shape[0], 1), jnp.int32),
    )
    return SplitPass(prefix_in, tail_in, tail_out, memory, trace)


def prefix_shares(requests: Requests) -> tuple[float, ...]:
    """For `prefix_pass`: what `world` and CounterFact fill, the contexts once for all facts and these apart.

    0.15 to 0.28 of all prefix tokens for 10 facts, 0.14 to 0.17 for 32. Of one fact half fill up to 0.61, a tenth
    more than 0.72.
    """
    facts = requests.prefix.shape[0]
    likely = 0.18 + 0.6 / facts
    return (0.62, 0.73) if facts == 1 else (likely, 1.5 * likely)


def prefix_pass(
    decoder: Decoder, rows: Rows, first: int, shares: Sequence[float] = ()
) -> tuple[Float[Array, "N P d_model"], dict[int, Memory]]:
    """Hidden states at the input of layer `first`, and every layer's memory.

    Rows that begin with the same tokens, as those of one context do, need them run only once. `shares` are the
    parts of all prefix tokens for which that is compiled; the smallest that holds the batch's runs,
    and where none does the prefixes run as they are.
    """
    at, mask = rows.prefix_position, rows.prefix_mask

    owner = owners(rows.prefix, rows.prefix_valid)

    def run(size: int | None) -> tuple[Array, dict[int, Memory]]:
        packing = None if size is None else shared_packing(owner, rows.prefix_valid, size)
        h = decoder.embed(rows.prefix, at)
        h = h if packing is None else pack(h, packing)
        step = functools.partial(decoder.run, position=at, mask=mask, packing=packing, keep_memory=True)
        prefix_in, _, below = step(h, range(first))
        _, _, above = step(prefix_in, range(first, decoder.config.n_layers))
        return prefix_in if packing is None else unpack(prefix_in, packing), below | above

    needed = owned(owner, rows.prefix_valid).sum()
    return in_smallest_room(run, needed, rows.prefix.size, shares)


class Lead(NamedTuple):
    """Prefix and lookup token as one sequence: all that keys and residuals at that token depend on."""

    hidden: Float[Array, "N P+1 d_model"]
    position: Int[Array, "N P+1"]
    mask: Bool[Array, "N P+1 P+1"]

    @property
    def at_lookup(self) -> Int[Array, "N 1"]:
        return jnp.full((self.hidden.shape[0], 1), self.hidden.shape[1] - 1)


def lead_of(rows: Rows, split: SplitPass) -> Lead:
    """The lead's hidden states at the input of the first edited layer."""
    valid = jnp.concatenate([rows.prefix_valid, rows.tail_valid[:, :1]], axis=-1)
    hidden = jnp.concatenate([split.prefix_in, split.tail_in[:, :1]], axis=1)
    position = jnp.concatenate([rows.prefix_position, rows.tail_position[:, :1]], axis=-1)
    return Lead(hidden, position, causal_mask(valid))


def whole_rows(requests: Requests) -> tuple[Int[Array, "B P+S"], Bool[Array, "B P+S"], Int[Array, "B T"]]:
    """Bare prompts with their targets as contiguous rows: tokens, which are valid, where targets are predicted."""
    tokens = jnp.concatenate([requests.prefix[:, 0], requests.tail[:, 0]], axis=-1)
    valid = jnp.concatenate([requests.prefix_mask[:, 0], requests.tail_mask[:, 0]], axis=-1)
    return tokens, valid, requests.predict_at[:, 0] + requests.prefix.shape[-1]
