"""One measure over many matrices: those of equal shape together, whichever layers they come from."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def over_matrices(measure: Callable[..., Any], *given: Mapping[str, PyTree]) -> dict[str, Any]:
    """`measure(*[x[path] for x in given])` for every path of the first, vmapped over equal shapes.

    Matrices of one shape are stacked, which copies them once.
    """
    alike: dict[Any, list[str]] = {}
    for path in given[0]:
        leaves, structure = jax.tree.flatten([x[path] for x in given])
        alike.setdefault((structure, *((leaf.shape, leaf.dtype) for leaf in leaves)), []).append(path)
    found: dict[str, Any] = {}
    with jax.enable_x64(True):  # else float64 leaves would be rounded as they are stacked
        for paths in alike.values():
            stacks = [
                jax.tree.map(lambda *x: jnp.stack(x), *(tree[path] for path in paths)) for tree in given
            ]
            results = jax.vmap(measure)(*stacks)
            found |= {path: jax.tree.map(lambda leaf: leaf[i], results) for i, path in enumerate(paths)}  # noqa: B023
    return {path: found[path] for path in given[0]}
