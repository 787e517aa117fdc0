"""One measure over many arrays of equal shape at once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def batched(one: Callable[[Any], Any], given: PyTree, together: int | None = None) -> Any:
    """`one` of every row of `given`: vmapped, or `together` rows at a time where memory is short.

    On CPU one row after the other: LAPACK gains nothing from batches, and two independent QR decompositions
    of batches in one program can wait for ever (XLA's thread pool, jaxlib 0.10.2).
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, given)
    return jax.vmap(one)(given) if together is None else jax.lax.map(one, given, batch_size=together)


def over_matrices(
    measure: Callable[..., Any], *given: Mapping[str, PyTree], together: int | None = None
) -> dict[str, Any]:
    """`measure(*[x[path] for x in given])` for every path of the first, `batched` over equal shapes.

    Matrices of one shape are stacked, which copies them once. `together` takes so many of them at a time, where
    memory is short for float64 copies of all.
    """
    alike: dict[Any, list[str]] = {}
    for path in given[0]:
        leaves, structure = jax.tree.flatten([x[path] for x in given])
        alike.setdefault((structure, *((leaf.shape, leaf.dtype) for leaf in leaves)), []).append(path)

    def one(trees: list[PyTree]) -> Any:
        return measure(*trees)

    found: dict[str, Any] = {}
    with jax.enable_x64(True):  # else float64 leaves would be rounded as they are stacked
        for paths in alike.values():
            stacks = [
                jax.tree.map(lambda *x: jnp.stack(x), *(tree[path] for path in paths)) for tree in given
            ]
            results = batched(one, stacks, together)
            found |= {path: jax.tree.map(lambda leaf: leaf[i], results) for i, path in enumerate(paths)}  # noqa: B023
    return {path: found[path] for path in given[0]}
