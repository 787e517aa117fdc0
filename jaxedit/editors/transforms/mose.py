"""MOSE (arXiv 2601.07873): facts written by a rotation of the matrix instead of an addition to it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.transforms.masks import moment_of
from jaxedit.editors.transforms.spectrum import singular
from jaxedit.editors.transforms.transform import Transform
from jaxedit.linalg import double
from jaxedit.types import Delta, Site


def mose(moments: Mapping[str, Float[Array, "in in"]], lam: float = 1.0) -> Transform:
    """Replaces a closed form's update by `Q W - W`, Q the rotation of `procrustes`.

    It reads the keys and residuals of the editor it is chained with and leaves its solution unused, so
    `chain(memit, mose)` is MOSE with MEMIT's keys, values and layers. Every singular value of W stays what
    it is. `moments` are C0 by path; the state is a copy of the matrix's. Raises StatisticsError where there is none.
    """

    def init(path: str, weight: Array) -> Float[Array, "in in"]:
        return jnp.copy(moment_of(moments, path))

    def apply(delta: Delta, moment: Array, site: Site) -> tuple[Delta, Array]:
        keys, residual, _ = site.solved  # type: ignore[misc]
        with jax.enable_x64(True):
            rotation = procrustes(site.weight, keys, residual, moment, lam)
            weight = double(site.weight)
            return (jnp.matmul(weight, rotation.T, precision="highest") - weight).astype(jnp.float32), moment

    return Transform(init, apply, needs_keys=True)


def procrustes(
    weight: Float[Array, "in out"],
    keys: Float[Array, "n in"],
    residual: Float[Array, "n out"],
    moment: Float[Array, "in in"],
    lam: float,
) -> Float[Array, "out out"]:
    """With columns, the orthogonal Q that minimises `lam E||Q W k - W k||^2 + sum ||Q W k_i - v_i||^2`, float64.

    Q = U Z^T for `lam W C0 W^T + V (W K)^T = U S Z^T`. A rotation cannot lengthen `W k`, so the wanted value
    `W k + residual` is first given that length.
    """
    with jax.enable_x64(True):
        weight, keys = double(weight), double(keys)
        now = jnp.matmul(keys, weight, precision="highest")
        wanted = now + double(residual)
        length = jnp.linalg.norm(wanted, axis=-1, keepdims=True)
        wanted = wanted * jnp.linalg.norm(now, axis=-1, keepdims=True) / jnp.where(length == 0, 1.0, length)
        seen = jnp.matmul(double(moment), weight, precision="highest")
        kept = jnp.matmul(weight.T, seen, precision="highest")
        parts = singular(lam * kept + jnp.matmul(wanted.T, now, precision="highest"))
        return jnp.matmul(parts.left, parts.right, precision="highest")
