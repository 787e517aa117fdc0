"""A batch's real tail tokens and the predictions that are read from them, packed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.packing import Packing, Size, pack, packing_of, unpack
from jaxedit.types import Requests


def sizes_of(requests: Requests, shares: Sequence[float], sizes: Sequence[Size] = ()) -> list[Size]:
    """The sizes given, or else shares, of the tail tokens and predictions that requests can hold.

    Ascending, each once, the last for all of them.
    """
    tokens, reads = requests.tail.size, requests.predict_at.size
    smaller = sizes or [Size(math.ceil(tokens * share), math.ceil(reads * share)) for share in shares]
    return sorted({*(Size(min(t, tokens), min(r, reads)) for t, r in smaller), Size(tokens, reads)})


def real_tail(requests: Requests) -> Bool[Array, "B R S"]:
    """Tail tokens of facts that are no padding."""
    return requests.tail_mask & (requests.weight > 0)[:, None, None]


def asked(requests: Requests) -> Bool[Array, "B C T"]:
    """Predictions of target tokens, in every context, of facts that are no padding."""
    counted = requests.target_mask & (requests.weight > 0)[:, None]
    return jnp.broadcast_to(counted[:, None], requests.predict_at.shape)


class Reads(NamedTuple):
    """The predictions that a loss is made of: Q places."""

    packing: Packing  # of the packed tail tokens, [M] -> [Q]
    label: Int[Array, "Q"]
    share: Float[Array, "B Q"]  # of every prediction in the mean NLL of its fact; 0 for those of others

    def by_target(self, x: Bool[Array, "Q"], requests: Requests, tokens: Packing) -> Bool[Array, "B C T"]:
        """Something known of every prediction, at its target token; False for padding."""
        rows = unpack(unpack(x[:, None], self.packing), tokens).reshape(requests.tail.shape)
        found = jnp.take_along_axis(rows[:, : requests.predict_at.shape[1]], requests.predict_at, axis=-1)
        return found & asked(requests)


def reads_of(requests: Requests, tokens: Packing, places: int) -> Reads:
    """Where targets are predicted, what they are, and what they count: equally, within a fact."""
    facts = requests.tail.shape[0]
    wanted = asked(requests)
    fact, context, _ = jnp.indices(wanted.shape, sparse=True)
    # Padding targets are sent out of range, and so dropped.
    at = jnp.where(wanted, requests.predict_at, requests.tail.shape[-1])
    label = jnp.broadcast_to(requests.target[:, None], wanted.shape)
    here = jnp.zeros(requests.tail.shape, bool).at[fact, context, at].set(True, mode="drop")
    labels = jnp.zeros(requests.tail.shape, jnp.int32).at[fact, context, at].set(label, mode="drop")
    of_fact = jnp.broadcast_to(jnp.arange(facts)[:, None, None], here.shape)

    def packed(x: Array, packing: Packing) -> Array:
        return pack(x.reshape(*packing.valid.shape, 1), packing)[:, 0]

    here, labels, of_fact = (packed(x, tokens) for x in (here, labels, of_fact))
    packing = packing_of(here, places)
    owned = (packed(of_fact, packing) == jnp.arange(facts)[:, None]) & packing.filled
    share = owned / jnp.maximum(owned.sum(axis=-1, keepdims=True), 1)
    return Reads(packing, packed(labels, packing), share)
