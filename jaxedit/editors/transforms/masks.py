"""Spectral masks: updates kept away from chosen directions on the input side, the output side, or both.

With columns, `Delta' = U_out ((U_out^T Delta U_in) .* M) U_in^T`. The masks here are separable, M = m_out m_in^T,
so `Delta' = (I - s V V^T) Delta (I - s U U^T)` for the directions V and U that are struck: low-rank updates stay
low-rank. Complement projectors leave what lies outside the span of W alone; a thin decomposition would delete it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxedit.editors.transforms.spectrum import leading, singular
from jaxedit.editors.transforms.transform import Transform, on_matrices, stateless
from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.linalg import double
from jaxedit.types import Delta, LowRank, Site


class Struck(NamedTuple):
    """Orthonormal directions to keep updates away from, float64; zero columns strike nothing."""

    inputs: Float[Array, "in m"] | None
    outputs: Float[Array, "out m"] | None


def masked(delta: Delta, struck: Struck, strength: float = 1.0) -> Delta:
    """The update with its component along the struck directions scaled by `1 - strength`."""
    with jax.enable_x64(True):
        if isinstance(delta, LowRank):
            left, right = double(delta.left), double(delta.right)
            left = _away(left, struck.inputs, strength)
            right = _away(right.T, struck.outputs, strength).T
            return LowRank(left.astype(jnp.float32), right.astype(jnp.float32))
        inside = _away(double(delta), struck.inputs, strength)
        return _away(inside.T, struck.outputs, strength).T.astype(jnp.float32)


def _away(x: Array, basis: Array | None, strength: float) -> Array:
    """(I - strength B B^T) x."""
    if basis is None:
        return x
    along = jnp.matmul(basis.T, x, precision="highest")
    return x - strength * jnp.matmul(basis, along, precision="highest")


def revive(share: float) -> Transform:
    """REVIVE (arXiv 2601.11042): no update touches the dominant singular directions of the unedited matrix.

    W_0 = U S V^T; k is the smallest number of singular values that hold `share` (tau) of the energy sum s^2.
    `U_k^T W` and `W V_k` stay what they are.
    """

    def init(path: str, weight: Array) -> Struck:
        parts = singular(weight)
        with jax.enable_x64(True):
            dominant = leading(jnp.square(parts.values), share)
            return Struck(parts.left * dominant, parts.right.T * dominant)

    return on_matrices(Transform(init, lambda delta, struck, site: (masked(delta, struck), struck)))


def sphere(strength: float = 0.8, share: float = 0.5) -> Transform:
    """SPHERE (arXiv 2510.01172): `Delta' = Delta (I - alpha U_r U_r^T)` with columns, on the input side.

    U_r are the principal directions of the matrix as it stands, every output neuron scaled to length one,
    that hold `share` (eta) of the energy; `strength` is alpha: 0.5 on AlphaEdit, 0.8 on others.
    """

    def change(delta: Delta, site: Site) -> Delta:
        with jax.enable_x64(True):
            neurons = double(site.weight)
            lengths = jnp.linalg.norm(neurons, axis=0)
            parts = singular(neurons / jnp.where(lengths == 0, 1.0, lengths))
            principal = leading(jnp.square(parts.values), share)
            return masked(delta, Struck(parts.left * principal, None), strength)

    return on_matrices(stateless(change))


def null_space(moments: Mapping[str, Float[Array, "in in"]], threshold: float = 0.02) -> Transform:
    """AlphaEdit's hard projection (arXiv 2410.02355) of any editor's update: `Delta' = Delta P` with columns.

    P projects on the eigenvectors of C0 (`moments`, by path) whose eigenvalues are below the threshold, so
    keys of the text hardly notice an update. Raises StatisticsError for a matrix without a moment, ConfigError
    where no eigenvalue is below.
    """

    def init(path: str, weight: Array) -> Struck:
        moment = moment_of(moments, path)
        with jax.enable_x64(True):
            eigenvalues, vectors = jnp.linalg.eigh(double(moment))
            struck = eigenvalues >= threshold
            if not isinstance(struck, jax.core.Tracer) and np.all(struck):
                raise ConfigError(
                    f"transform null-space: no direction of {path} is left to write along: no eigenvalue of its "
                    f"keys' second moment is below the threshold {threshold:g}. Raise it."
                )
            return Struck(vectors * struck, None)

    return on_matrices(Transform(init, lambda delta, struck, site: (masked(delta, struck), struck)))


def moment_of(moments: Mapping[str, Array], path: str) -> Array:
    """C0 of a matrix's inputs. Raises StatisticsError where there is none."""
    if path not in moments:
        raise StatisticsError(
            f"no second moment for {path}; there are {sorted(moments)}. "
            f"Collect it with jaxedit.statistics.second_moments."
        )
    return moments[path]
