"""Linear algebra on arrays alone: symmetric inverses kept up to date, and products of low-rank factors."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.types import Delta, LowRank

D = TypeVar("D", bound=Delta)


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


def spd_solve(matrix: Float[Array, "d d"], right: Float[Array, "d n"]) -> Float[Array, "d n"]:
    """`A^-1 B` in float64 for a symmetric positive definite A, by Cholesky; NaN where A is not that."""
    with jax.enable_x64(True):
        factor = jnp.linalg.cholesky(double(matrix))
        return jax.scipy.linalg.cho_solve((factor, True), double(right))


def null_projector(
    moment: Float[Array, "d d"], threshold: float | None = None, fraction: float | None = None
) -> Float[Array, "d d"]:
    """Projector on the eigenvectors of a second moment that carry least, in float64.

    Those with an eigenvalue below `threshold`, or without one the share `fraction` of all, smallest first.
    The decomposition is in float64: where neighbouring eigenvalues are close, float32 misses the subspace
    by percents.
    """
    with jax.enable_x64(True):
        values, vectors = jnp.linalg.eigh(double(moment))
        size = moment.shape[0]
        if threshold is None:
            small = jnp.arange(size) < round((1.0 if fraction is None else fraction) * size)
        else:
            small = values < threshold
        chosen = vectors * small
        projector = jnp.matmul(chosen, chosen.T, precision="highest")
        return jnp.where(
            jnp.isfinite(moment).all(), projector, jnp.nan
        )  # eigh may answer to NaN with numbers


def restricted_inverse(matrix: Float[Array, "d d"], projector: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """`P (P A P)^-1 P` in float64: the inverse of A within the range of the projector P, zero outside.

    A must be symmetric and positive definite within that range.
    """
    with jax.enable_x64(True):
        projector = double(projector)
        inside = jnp.matmul(
            jnp.matmul(projector, double(matrix), precision="highest"), projector, precision="highest"
        )
        # What stands outside the range does not matter; of the inside's scale it keeps the condition.
        rank = jnp.trace(projector)
        scale = jnp.where(rank > 0.5, jnp.trace(inside) / rank, 1.0)
        outside = jnp.eye(matrix.shape[0], dtype=jnp.float64) - projector
        inverse = spd_inverse((inside + inside.T) / 2 + scale * outside)
        result = jnp.matmul(
            jnp.matmul(projector, inverse, precision="highest"), projector, precision="highest"
        )
        return (result + result.T) / 2


def woodbury(
    inverse: Float[Array, "d d"],
    columns: Float[Array, "d n"],
    solved: Float[Array, "d n"],
    weight: float = 1.0,
) -> Float[Array, "d d"]:
    """`(A + weight K K^T)^-1` from `A^-1` and `solved = A^-1 K`: O(d^2 n), whatever was added before."""
    with jax.enable_x64(True):
        gram = jnp.matmul(double(columns).T, solved, precision="highest")
        gram = gram + jnp.eye(gram.shape[0], dtype=jnp.float64) / weight
        step = jnp.matmul(solved, jnp.linalg.solve(gram, solved.T), precision="highest")
        updated = inverse - step
        return (updated + updated.T) / 2


def excluded(
    inverse: Float[Array, "d d"], columns: Float[Array, "d n"], solved: Float[Array, "d n"]
) -> Float[Array, "d d"]:
    """`woodbury` of infinite weight: what A^-1 maps into the columns is taken out, O(d^2 n).

    For `A^-1 = P / c` with a projector P it is `(P - Q Q^T) / c`, the columns of Q an orthonormal basis of
    P K. Columns that are zero, or were taken out before, count for nothing.
    """
    with jax.enable_x64(True):
        columns = double(columns)
        gram = jnp.matmul(columns.T, solved, precision="highest")
        values, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
        # Keys are float32: what is left of one already excluded is its rounding, 1e-14 of its energy.
        floor = 1e-12 * jnp.max(jnp.sum(jnp.square(columns), axis=0)) * jnp.max(jnp.diagonal(inverse))
        kept = values > floor
        basis = jnp.matmul(solved, vectors, precision="highest")
        basis = basis * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1.0)), 0.0)
        updated = inverse - jnp.matmul(basis, basis.T, precision="highest")
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


def applied(matrix: Float[Array, "in out"], delta: D) -> tuple[Float[Array, "in out"], D]:
    """The matrix with a change, and the change to log: to the bit the one that was added (see `settled`)."""
    delta = settled(delta)
    return added(matrix, delta), delta


def all_applied(
    matrices: Mapping[str, Array], deltas: Mapping[str, D]
) -> tuple[dict[str, Array], dict[str, D]]:
    """`applied` for every change, by path."""
    written = {path: applied(matrices[path], delta) for path, delta in deltas.items()}
    changed = {path: matrix for path, (matrix, _) in written.items()}
    return changed, {path: delta for path, (_, delta) in written.items()}


def settled(delta: D) -> D:
    """The change as it is, its factors at one place in memory for all who read them; NaN all over if not finite.

    A compiler may copy the operations that make factors into everything that reads them, and round each copy
    otherwise: then what is logged is not what was added. It copies nothing over a branch that it cannot foresee.
    """
    if not isinstance(delta, LowRank):
        return delta
    wild = ~jnp.isfinite(jnp.sum(delta.left) + jnp.sum(delta.right))
    return jax.lax.cond(
        wild, lambda d: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), d), lambda d: d, delta
    )


def frobenius(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm in float32; zero for a zero matrix."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def all_finite(matrices: Iterable[Array]) -> Bool[Array, ""]:
    """Whether every number of every matrix is finite; so is none whose norm overflows float32."""
    return jnp.stack([jnp.isfinite(frobenius(matrix)) for matrix in matrices]).all()


def change_norm(delta: LowRank | Float[Array, "in out"]) -> Float[Array, ""]:
    """Frobenius norm of a change in float32; of factors `sqrt(tr((L^T L)(R R^T)))`, without their product.

    The Gram matrices are in float64: parts of the change that cancel each other then cost no more digits than in
    the product.
    """
    if not isinstance(delta, LowRank):
        return frobenius(delta)
    with jax.enable_x64(True):
        left, right = double(delta.left), double(delta.right)
        grams = jnp.matmul(left.T, left) * jnp.matmul(right, right.T)
        return jnp.sqrt(jnp.maximum(jnp.sum(grams), 0.0)).astype(jnp.float32)


def safe_norm(x: Float[Array, "*B d"]) -> Float[Array, "*B"]:
    """Euclidean norm over the last axis whose gradient at zero is zero; NaN stays NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))
