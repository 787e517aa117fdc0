"""The network of MEND (Mitchell et al. 2022, arXiv 2110.11309) and MALMEN (Tan et al. 2023, arXiv 2311.04661).

It maps a token's key and output gradient (u, v) to pseudo ones (u~, v~). Matrices of one shape share a transform,
each with a scale and shift of its own. What MEND and MALMEN make of (u~, v~) is `shift`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.features import FeatureConfig, Pairs, by_shape, compact
from jaxedit.editors.normalise import Running, empty, fold, standardise
from jaxedit.editors.regression import smoother
from jaxedit.models.model import Model
from jaxedit.types import LowRank

Affine = Literal["inside", "outside"]
"""Where a block scales and shifts: before it rectifies, as MEND does, or after, as MALMEN does."""


@dataclass(frozen=True)
class HyperConfig(FeatureConfig):
    """Settings of an editor with a trained network."""

    aggregate: Literal["sum", "regression"] = "sum"  # MEND adds the tokens' updates up, MALMEN fits them all
    rank: int = 1920  # of each layer's map, at most the width of (u, v)
    blocks: int = 2
    learning_rate: float = 1e-4  # at the start; learned, by matrix
    affine: Affine = "inside"  # `apply_block`; a network's file that does not say was trained with it inside
    lifelong: bool = False  # go on with the running moments while editing


class Block(NamedTuple):
    """One residual layer for m matrices of one shape, on vectors of d = d_in + d_out components."""

    into: Float[Array, "d r"]
    out: Float[Array, "r d"]
    bias: Float[Array, "d"]
    scale: Float[Array, "m d"]
    shift: Float[Array, "m d"]


class Net(NamedTuple):
    """What is learned."""

    blocks: dict[str, tuple[Block, ...]]  # by shape
    rate: dict[str, Float[Array, ""]]  # by path
    log_ridge: dict[str, Float[Array, ""]]  # lambda by path; MALMEN only


class Hypernet(NamedTuple):
    """A network with the moments of all pairs it has seen, by shape."""

    net: Net
    running: dict[str, Running]


def fresh(model: Model, config: HyperConfig, key: Array) -> Hypernet:
    """An untrained network: the identity, without moments, so that editing is plain gradient descent.

    Raises ConfigError for a layer or matrix that the model does not have.
    """
    paths = model.parameter_paths(config.layers, config.targets)
    groups = by_shape(model, paths)
    keys = jax.random.split(key, (len(groups), config.blocks))
    blocks, running = {}, {}
    for (shape, members), of_blocks in zip(groups.items(), keys, strict=True):
        width = sum(model.shapes[members[0]])
        blocks[shape] = tuple(_identity(one, width, config.rank, len(members)) for one in of_blocks)
        running[shape] = empty(width)
    rates = {path: jnp.asarray(config.learning_rate, jnp.float32) for path in paths}
    ridges = {path: jnp.zeros(()) for path in paths if config.aggregate == "regression"}
    return Hypernet(Net(blocks, rates, ridges), running)


def _identity(key: Array, width: int, rank: int, members: int) -> Block:
    """The second map is zero; the first keeps the size of normalised vectors."""
    rank = min(rank, width)
    return Block(
        into=jax.random.normal(key, (width, rank)) * width**-0.5,
        out=jnp.zeros((rank, width)),
        bias=jnp.zeros(width),
        scale=jnp.ones((members, width)),
        shift=jnp.zeros((members, width)),
    )


def rectified(x: Array) -> Array:
    """max(x, 0) with derivative one at zero: there the identity starts, and with zero it would never learn."""
    return jnp.where(x >= 0, x, 0.0)


def apply_block(block: Block, x: Float[Array, "n d"], member: int, affine: Affine) -> Float[Array, "n d"]:
    """MEND: `relu(scale * (U V x + b) + shift) + x`. MALMEN, as released: `scale * relu(U V x + b) + shift + x`."""
    mapped = jnp.matmul(jnp.matmul(x, block.into, precision="highest"), block.out, precision="highest")
    mapped = mapped + block.bias
    scale, shift = block.scale[member], block.shift[member]
    if affine == "outside":
        return scale * rectified(mapped) + shift + x
    return rectified(scale * mapped + shift) + x


def transform(
    blocks: Sequence[Block], running: Running, pairs: Pairs, member: int, affine: Affine
) -> tuple[Array, Array]:
    """Pseudo keys [n, d_in] and gradients [n, d_out]; zero where a token is not real."""
    x = standardise(running, pairs.joined)
    for block in blocks:
        x = apply_block(block, x, member, affine)
    x = jnp.where(pairs.real[:, None], x, 0)
    split = pairs.key.shape[-1]
    return x[:, :split], x[:, split:]


def fold_pairs(running: dict[str, Running], pairs: dict[str, Pairs]) -> dict[str, Running]:
    """The moments of every shape with the pairs of all its matrices."""
    result = dict(running)
    for path in sorted(pairs):
        one = pairs[path]
        result[one.shape] = fold(result[one.shape], one.joined, one.real)
    return result


def shift(
    net: Net, running: dict[str, Running], pairs: dict[str, Pairs], affine: Affine
) -> dict[str, LowRank | Float[Array, "in out"]]:
    """The change of every matrix [in, out], differentiable in `net`.

    MEND: `-rate sum_t u~_t v~_t^T`. MALMEN: the ridge regression of the value changes
    `d_t = -rate (u_t . u~_t) v~_t` on the keys u_t.
    """
    deltas, members = {}, dict.fromkeys(net.blocks, 0)
    for path in sorted(pairs):
        one = pairs[path]
        blocks, member = net.blocks[one.shape], members[one.shape]
        key, gradient = transform(blocks, running[one.shape], one, member, affine)
        members[one.shape] += 1
        if path in net.log_ridge:
            agreement = jnp.sum(one.key * key, axis=-1, keepdims=True)
            left, right = smoother(one.key, net.log_ridge[path]), agreement * gradient
        else:
            left, right = key.T, gradient
        deltas[path] = compact(LowRank(left, -net.rate[path] * right))
    return deltas
