"""The one preservation-memorisation solver behind ROME, r-ROME, MEMIT and EMMET.

With columns, `W k`: all of them write residuals R at keys K while preserving what `A` weighs,

    Delta = R (K^T A^-1 Q + ridge I)^-1 K^T A^-1,    A = lam C0 + lam_n I + K_p K_p^T,

where Q = K but for ROME. MEMIT is ridge 1, since `R K^T (A + K K^T)^-1 = R (K^T A^-1 K + I)^-1 K^T A^-1`;
EMMET is ridge eps; ROME and r-ROME are ridge 0. Arrays here are rows (`[n, d]`), weights `[in, out]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.linalg import double, spd_inverse, woodbury
from jaxedit.types import LowRank


class Preservation(NamedTuple):
    """A^-1 in float64, ready to solve against any number of keys."""

    inverse: Float[Array, "d_k d_k"]


def preservation(second_moment: Float[Array, "d_k d_k"], lam: float, lam_n: float = 0.0) -> Preservation:
    """A^-1 for `A = lam C0 + lam_n I`, without any earlier keys."""
    with jax.enable_x64(True):
        moment = double(second_moment)
        ridge = lam_n * jnp.eye(moment.shape[0], dtype=jnp.float64)
        return Preservation(spd_inverse(lam * moment + ridge))


def solve(kept: Preservation, keys: Float[Array, "n d_k"]) -> Float[Array, "n d_k"]:
    """Rows of `K^T A^-1`, float64."""
    with jax.enable_x64(True):
        return jnp.matmul(double(keys), kept.inverse, precision="highest")


def remember(kept: Preservation, keys: Float[Array, "n d_k"], solved: Float[Array, "n d_k"]) -> Preservation:
    """A^-1 after `K_p` has grown by these keys; padding facts' zero keys change nothing."""
    return Preservation(woodbury(kept.inverse, keys.T, solved.T))


def write(
    solved: Float[Array, "n d_k"],
    query: Float[Array, "n d_k"],
    residual: Float[Array, "n d_v"],
    ridge: float | Float[Array, ""],
    weight: Float[Array, "n"],
) -> LowRank:
    """Delta as factors `left = A^-1 K (Q^T A^-1 K + ridge I)^-1`, `right = R^T`.

    `query` are the keys at which the residual is measured (those of `solved` but for ROME). Rows of weight
    0 are padding: their keys and residuals must be zero, and they contribute nothing.
    """
    with jax.enable_x64(True):
        gram = jnp.matmul(double(query), solved.T, precision="highest")
        diagonal = ridge + (1.0 - double(weight))
        left = jnp.linalg.solve(gram.T + jnp.diag(diagonal), solved).T
        return LowRank(left.astype(jnp.float32), residual.astype(jnp.float32))
