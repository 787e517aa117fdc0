"""RECT (Gu et al. 2024, arXiv 2401.04700): only the entries that change most, relative to the weight."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.editors.transforms.transform import Transform, stateless
from jaxedit.linalg import dense
from jaxedit.types import Delta, Site


def rect(share: float = 0.4) -> Transform:
    """Keeps the `share` of entries with the largest |Delta / W| and drops the rest; the update becomes dense.

    The release keeps 40%, the paper's main tables 20%.
    """

    def change(delta: Delta, site: Site) -> Delta:
        full = dense(delta)
        return jnp.where(most_changed(full, site.weight, share), full, 0.0)

    return stateless(change)


def most_changed(
    delta: Float[Array, "in out"], weight: Float[Array, "in out"], share: float
) -> Bool[Array, "in out"]:
    """Exactly `round(share * size)` entries, largest |Delta / W| first, of equal ones the earlier.

    A change of a zero weight counts as infinite, no change as none.
    """
    change = jnp.abs(delta).ravel()
    relative = jnp.where(change == 0, 0.0, change / jnp.abs(weight).ravel())
    count = round(share * relative.size)
    if count == 0:
        return jnp.zeros(delta.shape, bool)
    last = jnp.sort(relative)[relative.size - count]
    above, equal = relative > last, relative == last
    room = count - above.sum()
    return (above | (equal & (jnp.cumsum(equal) <= room))).reshape(delta.shape)
