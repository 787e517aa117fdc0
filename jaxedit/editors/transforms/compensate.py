"""Compensation (arXiv 2605.26670): a transform acts on the total of a sequence instead of on each increment."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.transforms.transform import Transform, leave
from jaxedit.errors import ConfigError
from jaxedit.linalg import dense
from jaxedit.types import Delta, LowRank, Site, State


class Compensated(NamedTuple):
    """State of `compensate`."""

    gap: Float[Array, "in out"]  # W - S: what the transform has put on top of the editor's own solution
    inner: State


def compensate(transform: Transform) -> Transform:
    """Hands the transform what all earlier ones took away, together with the new update.

    With columns and A = lam C0 + lam_n I + K_p K_p^T + K K^T the paper writes
    `D = (R K^T - E) A^-1; W += Post(D); E = (Post(D) - D) A`. Kept here is the gap `G = E A^-1`: since
    `A_t = A_{t-1} + K K^T`, it is `E_{t-1} A_t^-1 = G - G K K^T A_t^-1`, and `A_t^-1 K` is the left factor of the
    solution. So D is the step to the matrix S that the bare editor would have reached, `S = W - G`, and
    neither A nor its inverse is needed. For closed forms with history S is the one-time solution. For gradient
    editors, which have no keys, this is error feedback: `D = Delta - G`. `D` and the result are dense. In a chain it
    stands first, since it completes the solution as it was solved; compensate several with `compose`.
    """

    def init(path: str, weight: Array) -> Compensated:
        return Compensated(jnp.zeros_like(weight), transform.init(path, weight))

    def apply(delta: Delta, state: Compensated, site: Site) -> tuple[Delta, Compensated]:
        full = dense(delta) - state.gap
        if site.solved is not None:
            unseen = jnp.matmul(site.solved.keys, state.gap, precision="highest")
            full = full + jnp.matmul(_solution(site).left, unseen, precision="highest")
        changed, inner = transform.apply(full, state.inner, site)
        return changed, Compensated(dense(changed) - full, inner)

    def finalize(weight: Array, state: Compensated) -> Array:
        return transform.finalize(weight, state.inner)

    untouched = transform.finalize is leave
    return Transform(init, apply, leave if untouched else finalize, transform.needs_keys)


def _solution(site: Site) -> LowRank:
    if site.solved is None or not isinstance(site.solved.delta, LowRank):
        raise ConfigError(
            f"compensation of {site.path} needs an update in factors, this editor's is dense: leave it out"
        )
    return site.solved.delta
