"""All measures of a matrix at one step, by name, for edited and unedited ones alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.leading import Leading, leading
from jaxedit.diagnostics.lowrank import captured
from jaxedit.diagnostics.norms import drift, size
from jaxedit.diagnostics.numbers import in_float64, norms, ratio
from jaxedit.diagnostics.spectra import Triplets, spectrum, triplets
from jaxedit.diagnostics.subspaces import Apart, apart, intruders
from jaxedit.errors import ConfigError, unknown_name

Group = Literal["size", "drift", "leading", "subspace", "spectrum", "intruders"]
Named = dict[str, Float[Array, ""]]


class Reference(NamedTuple):
    """A matrix before the first update, and its leading singular triplets."""

    matrix: Float[Array, "in out"]  # float32, as masters are
    top: Leading


@dataclass
class _Now:
    """A matrix at a step, beside its reference; decomposed where a group asks for it."""

    matrix: Float[Array, "in out"]
    first: Reference
    key: Array

    @property
    def k(self) -> int:
        return self.first.top.values.shape[0]

    @cached_property
    def top(self) -> Leading:
        return leading(self.matrix, self.k, self.key)

    @cached_property
    def whole(self) -> Triplets:
        return triplets(self.matrix)


@in_float64
def reference(first: Float[Array, "in out"], k: int, key: Array) -> Reference:
    """What `weight_measures` compares with, computed once."""
    return Reference(first.astype(jnp.float32), leading(first, k, key))


@in_float64
def weight_measures(
    matrix: Float[Array, "in out"], first: Reference, groups: Sequence[Group], key: Array
) -> Named:
    """The measures of these groups; `meanings` says what each is. Raises ConfigError for an unknown group.

    "size" and "drift" are one pass over the numbers, "leading" and "subspace" an iteration for the k leading
    singular triplets, "spectrum" and "intruders" whole decompositions: of this matrix, and for the latter of
    both.
    """
    if unknown := [group for group in groups if group not in GROUPS]:
        raise ConfigError(unknown_name("group of weight measures", unknown[0], GROUPS))
    now = _Now(matrix, first, key)
    return {name: value for group in groups for name, value in GROUPS[group](now).items()}


def _size(now: _Now) -> Named:
    found = size(now.matrix)
    axes = {
        f"{axis}_norm_{name}": value
        for axis, spread in (("row", found.rows), ("column", found.columns))
        for name, value in spread._asdict().items()
    }
    return {"frobenius": found.frobenius, "l1": found.l1, "largest": found.largest, **axes}


def _drift(now: _Now) -> Named:
    found = drift(now.matrix, now.first.matrix)
    return {
        "distance": found.distance,
        "relative_distance": found.relative,
        "normalised_distance": found.normalised,
        "growth": found.growth,
        "cosine": found.cosine,
    }


def _leading(now: _Now) -> Named:
    top, frobenius = now.top, norms(now.matrix.ravel())
    first = top.values[0]
    return {
        "spectral": first,
        "spectral_growth": ratio(first, now.first.top.values[0]),
        "stable_rank": jnp.square(ratio(frobenius, first)),
        "energy_ratio": ratio(first, frobenius),
        "top_energy": jnp.square(ratio(norms(top.values), frobenius)),
        "leading_residual": jnp.max(top.residual),
        "leading_gap": top.gap,
    }


def _subspace(now: _Now) -> Named:
    top, first = now.top, now.first.top
    change = captured(now.matrix - now.first.matrix, first.left, first.right)
    return (
        _apart("input", apart(first.left, top.left))
        | _apart("output", apart(first.right, top.right))
        | {f"change_in_{name}_subspace": value for name, value in change._asdict().items()}
    )


def _apart(side: str, found: Apart) -> Named:
    return {
        f"{side}_angle": found.angles[-1],
        f"{side}_grassmann": found.grassmann,
        f"{side}_chordal": found.chordal,
        f"{side}_overlap": found.overlap,
        f"{side}_overlap_chance": found.chance,
    }


def _spectrum(now: _Now) -> Named:
    found = spectrum(now.whole.values)
    return {name: getattr(found, name) for name in ("nuclear", "condition", "effective_rank")}


def _intruders(now: _Now) -> Named:
    before, after, k = triplets(now.first.matrix), now.whole, now.k
    return {
        "input_intruders": intruders(after.left[:, :k], before.left).astype(jnp.float64),
        "output_intruders": intruders(after.right[:, :k], before.right).astype(jnp.float64),
    }


GROUPS: dict[str, Callable[[_Now], Named]] = {
    "size": _size,
    "drift": _drift,
    "leading": _leading,
    "subspace": _subspace,
    "spectrum": _spectrum,
    "intruders": _intruders,
}
