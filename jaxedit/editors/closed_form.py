"""The one preservation-memorisation solver behind every closed-form editor.

With columns, `W k`: all of them write residuals R at keys K while preserving what `A` weighs,

    Delta = R (K^T M Q + ridge I)^-1 K^T M,    M = P (P A P)^-1 P,    A = lam C0 + lam_n I + beta K_p K_p^T,

where Q = K but for ROME, and P projects keys on the directions that may be written (P = I: all). With ridge 1
this is `R K^T P (P (K K^T + beta K_p K_p^T + lam C0) P + lam_n I)^-1`: MEMIT, ENCORE, AlphaEdit and what
follows from them. EMMET is ridge eps; ROME and r-ROME are ridge 0, where constraints at keys that depend on
each other hold in least squares. Whatever the projector, all that is kept is M, and a batch of n keys costs
O(d_k^2 n), however many came before. Arrays here are rows (`[n, d]`), weights `[in, out]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.linalg import double, excluded, restricted_inverse, spd_inverse, woodbury
from jaxedit.types import LowRank

# Keys are float32: a combination of them that is shorter than this, beside the longest key, is their rounding.
REPEATED = 1e-5


class Preservation(NamedTuple):
    """M in float64, ready to solve against any number of keys; A^-1 where nothing is projected."""

    inverse: Float[Array, "d_k d_k"]


def preservation(
    second_moment: Float[Array, "d_k d_k"],
    lam: float,
    lam_n: float = 0.0,
    projector: Float[Array, "d_k d_k"] | None = None,
) -> Preservation:
    """M for `A = lam C0 + lam_n I`, without any earlier keys."""
    with jax.enable_x64(True):
        if projector is not None and lam == 0:
            return Preservation(double(projector) / lam_n)  # no second inversion, no second rounding
        moment = double(second_moment)
        ridge = lam_n * jnp.eye(moment.shape[0], dtype=jnp.float64)
        matrix = lam * moment + ridge
        return Preservation(
            spd_inverse(matrix) if projector is None else restricted_inverse(matrix, projector)
        )


def solve(kept: Preservation, keys: Float[Array, "n d_k"]) -> Float[Array, "n d_k"]:
    """Rows of `K^T M`, float64."""
    with jax.enable_x64(True):
        return jnp.matmul(double(keys), kept.inverse, precision="highest")


def remember(
    kept: Preservation,
    keys: Float[Array, "n d_k"],
    solved: Float[Array, "n d_k"],
    beta: float | None = 1.0,
) -> Preservation:
    """M after `K_p` has grown by these keys; padding facts' zero keys change nothing.

    `beta` is their weight; `None` is infinite: later updates leave these keys' outputs as they are (EvoEdit).
    """
    if beta is None:
        return Preservation(excluded(kept.inverse, keys.T, solved.T))
    return Preservation(woodbury(kept.inverse, keys.T, solved.T, beta))


def write(
    solved: Float[Array, "n d_k"],
    query: Float[Array, "n d_k"],
    residual: Float[Array, "n d_v"],
    ridge: float | Float[Array, ""],
    weight: Float[Array, "n"],
) -> LowRank:
    """Delta as factors `left = M K (Q^T M K + ridge I)^-1`, `right = R^T`.

    `query` are the keys at which the residual is measured (those of `solved` but for ROME). Rows of weight
    0 are padding: their keys and residuals must be zero, and they contribute nothing. With ridge 0 every
    constraint holds exactly, but where rows of `query` repeat, or nearly so, in least squares: facts at one key
    get the mean of their residuals.
    """
    with jax.enable_x64(True):
        gram = jnp.matmul(double(query), solved.T, precision="highest")
        padding = jnp.diag(1.0 - double(weight))
        if not isinstance(ridge, Array) and ridge == 0 and len(query) > 1:
            gram, solved = without_repeats(gram, solved, query, padding)
        else:
            gram = gram + ridge * jnp.eye(len(query), dtype=jnp.float64)
        left = jnp.linalg.solve((gram + padding).T, solved).T
        return LowRank(left.astype(jnp.float32), residual.astype(jnp.float32))


def without_repeats(
    gram: Float[Array, "n n"],
    solved: Float[Array, "n d_k"],
    query: Float[Array, "n d_k"],
    padding: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Float[Array, "n d_k"]]:
    """The system to solve, float64, without the combinations of constraints in which the keys cancel.

    The gram alone does not tell them: M weighs the rounding of keys by the condition of C0. Keys of which none
    repeats another leave both as they are, to the bit.
    """
    with jax.enable_x64(True):
        keys = double(query)
        lengths = jnp.matmul(keys, keys.T, precision="highest")
        longest = jnp.max(jnp.diagonal(lengths))
        values, vectors = jnp.linalg.eigh(lengths / jnp.where(longest > 0, longest, 1.0) + padding)
        cancelled = vectors * (values < REPEATED**2)
        out = jnp.matmul(cancelled, cancelled.T, precision="highest")
        kept = jnp.eye(len(keys), dtype=jnp.float64) - out
        inside = jnp.matmul(jnp.matmul(kept, gram, precision="highest"), kept, precision="highest")
        scale = jnp.max(jnp.abs(jnp.diagonal(gram)))  # of what is put in their place, which does not matter
        return inside + scale * out, jnp.matmul(kept, solved, precision="highest")
