"""What an update may not do: numbers that are not finite, and norms beyond a budget."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Policy: TypeAlias = Literal["stop", "skip", "rollback"]
"""What becomes of a refused update. `skip`: it alone is left out. `rollback`: its whole chunk is left out.
`stop`: it is left out and the run ends before it."""

REASONS = ("not finite", "over the budget of one edit", "over the budget of all edits")


class Guard(NamedTuple):
    """Limits on every update, absolute, by parameter path; a path without a limit is not limited."""

    policy: Policy = "stop"
    edit: Mapping[str, float] = {}  # largest ||Delta||_F
    total: Mapping[str, float] = {}  # largest ||W||_F after an update


ANY_FINITE = Guard()
"""Refuses only what is not finite, and stops there."""


def guard_of(
    norms: Mapping[str, float], policy: Policy = "stop", edit: float | None = None, total: float | None = None
) -> Guard:
    """Budgets as shares of the unedited norms: `||Delta||_F <= edit ||W_0||_F`, `||W_t||_F <= total ||W_0||_F`."""

    def limits(share: float | None) -> dict[str, float]:
        return {} if share is None else {path: share * norm for path, norm in norms.items()}

    return Guard(policy, limits(edit), limits(total))


def refusal(
    guard: Guard,
    finite: Bool[Array, ""],
    norm: Mapping[str, Float[Array, ""]],
    delta_norm: Mapping[str, Float[Array, ""]],
) -> Int[Array, ""]:
    """0 for an update within all limits; else the sum of `1 << i` over the `REASONS` that it breaks."""
    every = [*norm.values(), *delta_norm.values()]
    broken = (
        ~(finite & jnp.isfinite(jnp.stack(every)).all()),
        _any(delta_norm[path] > limit for path, limit in guard.edit.items()),
        _any(norm[path] > limit for path, limit in guard.total.items()),
    )
    return sum((jnp.int32(1 << i) * flag for i, flag in enumerate(broken)), start=jnp.int32(0))


def reasons(code: int) -> list[str]:
    """The words of a refusal's code."""
    return [text for i, text in enumerate(REASONS) if code >> i & 1]


def _any(flags) -> Bool[Array, ""]:
    found = list(flags)
    return jnp.stack(found).any() if found else jnp.zeros((), bool)
