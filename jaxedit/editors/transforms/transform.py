"""What an update transform is: a change of one matrix's update, with a memory of its own."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxedit.types import Delta, Site, State


def leave(weight: Float[Array, "in out"], state: State) -> Float[Array, "in out"]:
    """The matrix, untouched."""
    return weight


class Transform(NamedTuple):
    """A change of updates as pure functions on one matrix; hyper-parameters are closed over.

    `init(path, weight)` makes the state from the unedited matrix W_0 and shares no memory with it.
    `apply(delta, state, site)` returns the changed update, float32, and the new state; `site.weight` is the
    matrix W before the update. `finalize(weight, state)` gives the matrix to use after the last update.
    `needs_keys` marks transforms that read `site.solved`: they fit closed forms only.
    """

    init: Callable[[str, Float[Array, "in out"]], State]
    apply: Callable[[Delta, State, Site], tuple[Delta, State]]
    finalize: Callable[[Float[Array, "in out"], State], Float[Array, "in out"]] = leave
    needs_keys: bool = False


def stateless(change: Callable[[Delta, Site], Delta], needs_keys: bool = False) -> Transform:
    """A transform that remembers nothing."""
    return Transform(
        lambda path, weight: (), lambda delta, state, site: (change(delta, site), state), leave, needs_keys
    )


def identity() -> Transform:
    """Leaves every update as it is."""
    return stateless(lambda delta, site: delta)


def on_matrices(transform: Transform) -> Transform:
    """The transform where there are rows and columns; biases and the scales of norms are left as they are."""

    def init(path: str, weight: Array) -> State:
        return transform.init(path, weight) if weight.ndim == 2 else ()

    def apply(delta: Delta, state: State, site: Site) -> tuple[Delta, State]:
        return transform.apply(delta, state, site) if site.weight.ndim == 2 else (delta, state)

    def finalize(weight: Array, state: State) -> Array:
        return transform.finalize(weight, state) if weight.ndim == 2 else weight

    untouched = transform.finalize is leave
    return Transform(init, apply, leave if untouched else finalize, transform.needs_keys)


def compose(*transforms: Transform) -> Transform:
    """One transform that applies these from left to right; its state is the tuple of theirs."""

    def init(path: str, weight: Array) -> tuple[State, ...]:
        return tuple(one.init(path, weight) for one in transforms)

    def apply(delta: Delta, state: tuple[State, ...], site: Site) -> tuple[Delta, tuple[State, ...]]:
        after = []
        for one, own in zip(transforms, state, strict=True):
            delta, own = one.apply(delta, own, site)
            after.append(own)
        return delta, tuple(after)

    def finalize(weight: Array, state: tuple[State, ...]) -> Array:
        for one, own in zip(transforms, state, strict=True):
            weight = one.finalize(weight, own)
        return weight

    untouched = all(one.finalize is leave for one in transforms)
    needs_keys = any(one.needs_keys for one in transforms)
    return Transform(init, apply, leave if untouched else finalize, needs_keys)
