"""All measures of two models' vectors on the same prompts, by name, over layers and positions at once."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.activations import Activations, residual_shares, shift
from jaxedit.diagnostics.controls import beyond_floor, split_half
from jaxedit.diagnostics.maps import plane_map
from jaxedit.diagnostics.numbers import in_float64
from jaxedit.diagnostics.similarity import frechet, linear_cka, mean_shift, norm_difference, procrustes
from jaxedit.diagnostics.stacked import batched
from jaxedit.diagnostics.subspaces import anisotropy, effective_rank, subspace_shift
from jaxedit.errors import ConfigError, unknown_name

Group = Literal["shift", "subspace", "similarity", "shape", "map", "floor"]
Vectors = Float[Array, "N d"]
Named = dict[str, Float[Array, "..."]]
Measure = Callable[[Vectors, Vectors, int, Array], Named]


@in_float64
def vector_measures(before: Vectors, after: Vectors, groups: Sequence[Group], k: int, key: Array) -> Named:
    """The measures of these groups of one layer's vectors at one position; `meanings` says what each is.

    `k` is the dimension of principal subspaces; `key` starts the solver and halves the prompts. Raises
    ConfigError for an unknown group, and for a k above the number of prompts or the vectors' width.
    """
    if unknown := [group for group in groups if group not in GROUPS]:
        raise ConfigError(unknown_name("group of activation measures", unknown[0], GROUPS))
    parts = (GROUPS[group](before, after, k, key) for group in groups)
    return {name: value for part in parts for name, value in part.items()}


def activation_measures(
    before: Activations,
    after: Activations,
    groups: Sequence[Group],
    k: int,
    key: Array,
    together: int | None = None,
) -> dict[str, Named]:
    """`vector_measures` of every vector that was collected: arrays [L, positions], by vector and measure.

    All layers, positions and vectors of one width are `batched`, `together` of them at a time where memory is
    short. Modules' shares of the residual stream come beside, where both modules were collected.
    """

    def one(pair: tuple[Vectors, Vectors]) -> Named:
        return vector_measures(*pair, groups, k, key)

    found: dict[str, Named] = {}
    for names in _alike(before):
        shapes = [getattr(before, name).shape for name in names]
        old, new = (
            jnp.concatenate([getattr(given, name).reshape(-1, *shapes[0][2:]) for name in names])
            for given in (before, after)
        )
        pairs = old, new
        with jax.enable_x64(True):
            results = batched(one, pairs, together)
            start = 0
            for name, shape in zip(names, shapes, strict=True):
                rows = slice(start, start := start + shape[0] * shape[1])
                found[name] = {what: x[rows].reshape(shape[:2]) for what, x in results.items()}
    if len(before.attention) and len(before.mlp):
        for when, vectors in (("before", before), ("after", after)):
            shares = jax.vmap(residual_shares, in_axes=1, out_axes=1)(vectors.attention, vectors.mlp)
            for name, share in zip(("attention", "mlp"), shares, strict=True):
                found[name][f"residual_share_{when}"] = share
    return found


def _alike(given: Activations) -> list[list[str]]:
    """Names of the vectors that were collected, those of one width together."""
    widths: dict[tuple[int, ...], list[str]] = {}
    for name, x in given._asdict().items():
        if len(x):
            widths.setdefault(x.shape[2:], []).append(name)
    return list(widths.values())


def _shift(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    return shift(before, after)._asdict()


def _subspace(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    found = subspace_shift(before, after, k, key)
    return {
        "angle": found.apart.angles[-1],
        "grassmann": found.apart.grassmann,
        "chordal": found.apart.chordal,
        "overlap": found.apart.overlap,
        "overlap_chance": found.apart.chance,
        "explained_before": found.explained_before,
        "explained_after": found.explained_after,
        "explained_own": found.explained_own,
        "subspace_residual": found.residual,
        "subspace_gap": found.gap,
    }


def _similarity(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    turned = procrustes(before, after)
    return {
        "cka": linear_cka(before, after),
        "moved": turned.moved,
        "procrustes": turned.residual,
        "rotation": turned.rotation,
        "frechet": frechet(before, after),
    }


def _shape(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    return {
        f"{measure.__name__}_{when}": measure(vectors)
        for measure in (effective_rank, anisotropy)
        for when, vectors in (("before", before), ("after", after))
    }


def _map(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    found = plane_map(before, after, key)
    return {
        "map_overlap_1": found.overlap[0],
        "map_overlap_2": found.overlap[1],
        "map_hausdorff": found.hausdorff,
        "map_inside": found.inside,
    }


def _floor(before: Vectors, after: Vectors, k: int, key: Array) -> Named:
    """Measures of sets on halves of the prompts: what sampling alone gives, and whether the change is beyond it."""
    halves = len(before) // 2

    def measured(x: Vectors, y: Vectors) -> Named:
        found = subspace_shift(x, y, min(k, halves - 1), key)
        return {
            "angle": found.apart.angles[-1],
            "chordal": found.apart.chordal,
            "norm": norm_difference(x, y),
            "mean_shift": mean_shift(x, y),
            "frechet": frechet(x, y),
        }

    found = split_half(measured, before, after, key)
    result = {}
    for name in found.floor:
        result[f"half_{name}"] = jnp.median(found.shift[name])
        result[f"half_{name}_floor"] = jnp.quantile(found.floor[name], 0.95)
        result[f"half_{name}_beyond"] = beyond_floor(found.floor[name], found.shift[name]).astype(jnp.float64)
    return result


GROUPS: dict[str, Measure] = {
    "shift": _shift,
    "subspace": _subspace,
    "similarity": _similarity,
    "shape": _shape,
    "map": _map,
    "floor": _floor,
}
