"""Linear algebra on arrays alone: symmetric inverses kept up to date, and products of low-rank factors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.types import LowRank


def double(x: Array) -> Array:
    """`x` in float64, also where JAX's default is float32. Call inside `jax.enable_x64(True)`."""
    return x.astype(jnp.float64)


def spd_inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Inverse of a symmetric positive definite matrix in float64, by Cholesky.

    Keys of a language model make second moments of condition 1e6 and more, beyond float32. An indefinite
    or non-finite matrix gives NaN, which callers check.
    """
    with jax.enable_x64(True):
        factor = jnp.linalg.cholesky(double(matrix))
        identity = jnp.eye(matrix.shape[0], dtype=jnp.float64)
        half = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        return jnp.matmul(half.T, half, precision="highest")


def woodbury(
    inverse: Float[Array, "d d"], columns: Float[Array, "d n"], solved: Float[Array, "d n"]
) -> Float[Array, "d d"]:
    """`(A + K K^T)^-1` from `A^-1` and `solved = A^-1 K`: O(d^2 n), whatever was added before."""
    with jax.enable_x64(True):
        gram = jnp.matmul(double(columns).T, solved, precision="highest")
        gram = gram + jnp.eye(gram.shape[0], dtype=jnp.float64)
        step = jnp.matmul(solved, jnp.linalg.solve(gram, solved.T), precision="highest")
        updated = inverse - step
        return (updated + updated.T) / 2


def dense(delta: LowRank | Float[Array, "in out"]) -> Float[Array, "in out"]:
    """The change as one matrix, in float32 at highest precision."""
    return jnp.matmul(delta.left, delta.right, precision="highest") if isinstance(delta, LowRank) else delta


def added(matrix: Float[Array, "in out"], delta: LowRank | Float[Array, "in out"]) -> Float[Array, "in out"]:
    """`W + Delta` in float32, for factors the same bits on every backend and in every program.

    Factors are added one rank after the other in float64 and rounded once: a product of two float32 numbers
    is exact there, so it makes no difference whether a compiler fuses it with the sum.
    """
    if not isinstance(delta, LowRank):
        return matrix + delta
    with jax.enable_x64(True):
        left, right = double(delta.left), double(delta.right)
        total = jax.lax.fori_loop(
            0, left.shape[1], lambda i, total: total + left[:, i, None] * right[i], double(matrix)
        )
        return total.astype(jnp.float32)


def frobenius(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm in float32; zero for a zero matrix."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def safe_norm(x: Float[Array, "*B d"]) -> Float[Array, "*B"]:
    """Euclidean norm over the last axis whose gradient at zero is zero; NaN stays NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))
