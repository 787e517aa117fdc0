"""The largest singular values and their vectors, by block Krylov iteration to a stated accuracy."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxedit.diagnostics.numbers import gaussian, in_float64, norms, ratio
from jaxedit.diagnostics.spectra import Triplets, triplets
from jaxedit.errors import ConfigError
from jaxedit.types import LowRank

DEPTH = 4  # products with A^T A between two restarts
SPARE = 8  # vectors iterated beyond those asked for, at least
SMALL = 256  # rows or columns: up to here the whole decomposition is sooner done

Product = Callable[[Array], Array]


class Leading(NamedTuple):
    """The k leading singular triplets of A, and how good they are."""

    left: Float[Array, "in k"]  # columns
    values: Float[Array, "k"]  # descending
    right: Float[Array, "out k"]
    residual: Float[Array, "k"]  # ||A^T u - s v|| / s_1: so near to each value, over s_1, A has one
    gap: Float[Array, ""]  # (s_k - s_{k+1}) / s_1: without any, the k-dimensional subspaces are arbitrary
    cycles: Int[Array, ""]  # restarts that it took


class _State(NamedTuple):
    left: Float[Array, "in b"]
    values: Float[Array, "b"]
    right: Float[Array, "out b"]
    residual: Float[Array, "b"]
    cycle: Int[Array, ""]


@in_float64
def leading(
    matrix: Float[Array, "in out"],
    k: int,
    key: Array,
    *,
    added: LowRank | None = None,
    tolerance: float = 1e-10,
    cycles: int = 200,
) -> Leading:
    """The k largest singular values of `matrix + added` with their vectors; the sum is not formed.

    Block Krylov iteration with restarts (Musco and Musco 2015, arXiv 1504.05477) from a Gaussian block drawn
    from `key`, until every residual is at most `tolerance`, or `cycles` have passed. The angle between the
    subspaces found and the true ones is about `residual / gap`. Small matrices are decomposed outright.

    Raises ConfigError for a k that the matrix does not have.
    """
    rows, columns = matrix.shape
    if not 1 <= k <= min(rows, columns):
        raise ConfigError(f"k is {k}; a matrix of {rows} x {columns} has 1 to {min(rows, columns)}")
    if rows < columns:
        turned = None if added is None else LowRank(added.right.T, added.left.T)
        found = leading(matrix.T, k, key, added=turned, tolerance=tolerance, cycles=cycles)
        return found._replace(left=found.right, right=found.left)
    forward, backward = _products(matrix, added)
    block = min(k + max(k, SPARE), columns)
    if columns <= max(SMALL, DEPTH * block):
        whole = triplets(matrix if added is None else matrix + added.left @ added.right)
        return _result(_state(backward, whole, 0), k)

    def advance(state: _State) -> _State:
        basis = _krylov(forward, backward, state.right)
        inner = triplets(forward(basis))
        right = basis @ inner.right[:, :block]
        found = Triplets(inner.left[:, :block], inner.values[:block], right)
        return _state(backward, found, state.cycle + 1)

    def unfinished(state: _State) -> Array:
        return (state.cycle < cycles) & (jnp.max(state.residual[:k]) > tolerance)

    start = jnp.linalg.qr(gaussian(key, (columns, block)))[0]
    first = advance(_State(jnp.zeros((rows, block)), jnp.zeros(block), start, jnp.zeros(block), jnp.array(0)))
    return _result(jax.lax.while_loop(unfinished, advance, first), k)


def _products(matrix: Array, added: LowRank | None) -> tuple[Product, Product]:
    if added is None:
        return lambda x: matrix @ x, lambda y: matrix.T @ y
    return (
        lambda x: matrix @ x + added.left @ (added.right @ x),
        lambda y: matrix.T @ y + added.right.T @ (added.left.T @ y),
    )


def _krylov(forward: Product, backward: Product, start: Float[Array, "out b"]) -> Float[Array, "out c"]:
    """An orthonormal basis whose first columns span `start`, the next A^T A times it, and so on."""
    basis = last = start
    for _ in range(DEPTH - 1):
        following = backward(forward(last))
        last = jnp.linalg.qr(following - basis @ (basis.T @ following))[0]
        basis = jnp.concatenate([basis, last], axis=1)
    # Where nothing new was left, the columns are arbitrary: orthogonal they are only after this.
    return jnp.linalg.qr(basis)[0]


def _state(backward: Product, found: Triplets, cycle: int | Array) -> _State:
    """Of triplets with A v = s u."""
    defect = backward(found.left) - found.values * found.right
    return _State(*found, ratio(norms(defect.T), found.values[0]), jnp.asarray(cycle))


def _result(state: _State, k: int) -> Leading:
    values = state.values
    following = values[k] if len(values) > k else jnp.zeros(())
    gap = ratio(values[k - 1] - following, values[0])
    return Leading(
        state.left[:, :k], values[:k], state.right[:, :k], state.residual[:k], gap, cycles=state.cycle
    )
