"""Many wanted changes of values as one change of a matrix: ridge regression on the keys (arXiv 2311.04661)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.linalg import double


@jax.custom_vjp
def smoother(keys: Float[Array, "n d"], log_ridge: Float[Array, ""]) -> Float[Array, "d n"]:
    """S = `(K K^T + e^lambda I)^-1 K` for keys as rows: `S @ D` is the change of least squares for values D [n, d_v].

    Solved in float64, in the smaller of its two forms; rows of zeros contribute nothing. Differentiable in lambda;
    keys are data, and their gradient is zero.
    """
    with jax.enable_x64(True):
        return _solved(keys, log_ridge).astype(jnp.float32)


def _system(keys: Array, log_ridge: Array) -> Float[Array, "m m"]:
    keys = double(keys)
    inner = keys @ keys.T if _dual(keys) else keys.T @ keys
    return inner + jnp.exp(double(log_ridge)) * jnp.eye(len(inner), dtype=jnp.float64)


def _dual(keys: Array) -> bool:
    return keys.shape[0] < keys.shape[1]


def _solved(keys: Array, log_ridge: Array) -> Float[Array, "d n"]:
    with jax.default_matmul_precision("highest"):
        system = _system(keys, log_ridge)
        return (
            jnp.linalg.solve(system, double(keys)).T
            if _dual(keys)
            else jnp.linalg.solve(system, double(keys).T)
        )


def _forward(keys: Array, log_ridge: Array) -> tuple[Array, tuple[Array, Array]]:
    return smoother(keys, log_ridge), (keys, log_ridge)


def _backward(kept: tuple[Array, Array], cotangent: Float[Array, "d n"]) -> tuple[Array, Array]:
    """`dS / dlambda = -e^lambda (K K^T + e^lambda I)^-1 S`."""
    keys, log_ridge = kept
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        system, solved = _system(keys, log_ridge), _solved(keys, log_ridge)
        twice = jnp.linalg.solve(system, solved.T).T if _dual(keys) else jnp.linalg.solve(system, solved)
        slope = -jnp.exp(double(log_ridge)) * jnp.sum(double(cotangent) * twice)
        return jnp.zeros_like(keys), slope.astype(jnp.float32)


smoother.defvjp(_forward, _backward)
