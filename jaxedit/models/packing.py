"""Real tokens of padded rows, one after the other: linear layers then run on no padding."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.batching import largest

T = TypeVar("T")


class Size(NamedTuple):
    """How many tokens, and how many predictions of target tokens, there is room for."""

    tokens: int
    reads: int


class Packing(NamedTuple):
    """Where the valid ones of an array of tokens stand among M places, and back."""

    place: Int[Array, "*N"]  # of every token; any where it is not valid
    valid: Bool[Array, "*N"]
    token: Int[Array, "M"]  # index into the flattened tokens; any where the place is empty
    filled: Bool[Array, "M"]


def packing_of(valid: Bool[Array, "*N"], places: int) -> Packing:
    """Packs the valid tokens in their order into `places` places, which must be enough."""
    flat = valid.reshape(-1)
    place = jnp.cumsum(flat) - 1
    token = jnp.nonzero(flat, size=places, fill_value=0)[0]
    filled = jnp.arange(places) < flat.sum()
    return Packing(jnp.clip(place, 0, places - 1).reshape(valid.shape), valid, token, filled)


def in_smallest_room(
    run: Callable[[int | None], T], needed: Int[Array, ""], whole: int, shares: Sequence[float]
) -> T:
    """`run` with the smallest of these shares of `whole` tokens that holds the needed ones.

    With None, for everything as it is padded, where no share does. It is compiled for each of them.
    """
    sizes = [math.ceil(whole * share) for share in sorted(shares)]
    if not sizes:
        return run(None)
    runs = [functools.partial(run, size) for size in (*sizes, None)]
    most = largest(needed)
    return jax.lax.switch(sum(size < most for size in sizes), runs)


@jax.custom_vjp
def pack(x: Float[Array, "*N d"], packing: Packing) -> Float[Array, "M d"]:
    """The valid tokens' vectors; zero at empty places. Transpose of `unpack`."""
    picked = x.reshape(-1, x.shape[-1])[packing.token]
    return jnp.where(packing.filled[:, None], picked, jnp.zeros_like(picked))


@jax.custom_vjp
def unpack(x: Float[Array, "M d"], packing: Packing) -> Float[Array, "*N d"]:
    """The vectors back where they belong; zero where a token is not valid. Transpose of `pack`."""
    placed = x[packing.place]
    return jnp.where(packing.valid[..., None], placed, jnp.zeros_like(placed))


# Each is the other's transpose, a gather: differentiated as they stand they would become scatters, which are slow.
pack.defvjp(lambda x, packing: (pack(x, packing), packing), lambda packing, g: (unpack(g, packing), None))
unpack.defvjp(lambda x, packing: (unpack(x, packing), packing), lambda packing, g: (pack(g, packing), None))
