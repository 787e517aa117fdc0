"""Measures of a run's model at one step: its matrices, and vectors inside the model."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxedit.diagnostics.activations import Activations
from jaxedit.diagnostics.controls import random_update
from jaxedit.diagnostics.leading import Leading
from jaxedit.diagnostics.shifts import activation_measures
from jaxedit.diagnostics.stacked import over_matrices
from jaxedit.diagnostics.weights import Reference, reference, weight_measures
from jaxedit.errors import ConfigError
from jaxedit.linalg import added
from jaxedit.pipeline.prepare import Prepared
from jaxedit.pipeline.prompt_sets import Collector, PromptSet, of_sets, prompt_sets
from jaxedit.pipeline.watch_config import MeasureConfig
from jaxedit.trajectory.replay import Matrices, Trajectory
from jaxedit.types import LowRank, Params, as_they_are

WeightFunction = Callable[[Matrices], dict[str, dict[str, Array]]]
"""Measures of every matrix by name."""
TOGETHER = 4  # layers and positions whose vectors are compared at once


class Row(NamedTuple):
    """One number."""

    step: int
    model: str  # "edited"; "random" for the null model; "unedited" for matrices that stay, at step 0
    where: str  # a matrix by its path, or a vector such as "layers.3.mlp"
    prompts: str  # name of the prompt set; empty for matrices
    position: str  # place in the prompt; empty for matrices
    measure: str  # a name in jaxedit.diagnostics.meanings
    value: float


class Measured:
    """What is compiled or computed once for all steps of a run; `first` are the matrices before the first update."""

    def __init__(self, config: MeasureConfig, prepared: Prepared, first: Matrices):
        self.config, self.frozen, self.first = config, prepared.params.frozen, first
        self.key, self._finalize = jax.random.key(config.seed), prepared.editor.finalize
        self._sets: dict[str, PromptSet] = {}
        if config.activations:
            self._sets = prompt_sets(prepared.facts, prepared.checkpoint, config.prompts, config.text)
            self._require_enough()
            self._collector = Collector(prepared.checkpoint.model, config.vectors)
            self._before = self._vectors(first)
            self._shifts = jax.jit(
                functools.partial(
                    activation_measures,
                    groups=config.activations,
                    k=config.k,
                    key=self.key,
                    together=TOGETHER,
                )
            )

    @functools.cached_property
    def _references(self) -> dict[str, Reference]:
        return self._reference(_two_dimensional(self.first))

    @functools.cached_property
    def _weights(self) -> WeightFunction:
        return self._weight_function(self._references) if self.config.weights else lambda now: {}

    @property
    def tops(self) -> dict[str, Leading]:
        """Leading singular triplets of every matrix before the first update."""
        return {path: one.top for path, one in self._references.items()}

    def _reference(self, first: Matrices) -> dict[str, Reference]:
        k, key = self.config.k, self.key
        found: dict[str, Reference] = jax.jit(
            lambda first: over_matrices(lambda w: reference(w, k, key), first, together=1)
        )(first)
        return found

    def _weight_function(self, references: dict[str, Reference]) -> WeightFunction:
        groups, key = self.config.weights, self.key
        measure = jax.jit(
            lambda now, first: over_matrices(
                lambda w, r: weight_measures(w, r, groups, key), now, first, together=1
            )
        )
        return lambda now: measure(now, references)

    def _require_enough(self) -> None:
        for name, one in self._sets.items():
            count = len(one.prompts.tokens)
            if count <= self.config.k:
                raise ConfigError(
                    f"k is {self.config.k}, but the {name!r} set has {count} prompts: lower k, or measure a run "
                    f"of more facts"
                )

    def _vectors(self, matrices: Matrices) -> dict[str, Activations]:
        return of_sets(self._collector, Params(matrices, self.frozen), self._sets)

    def at(self, step: int, now: Matrices, found: Trajectory) -> Iterator[Row]:
        """Rows of the model after a step of the run, and of the null model beside it."""
        yield from self.model(step, "edited", now)
        if self.config.null is not None and step:
            yield from self.model(step, "random", self.random(found, step, now))

    def model(self, step: int, name: str, matrices: Matrices) -> Iterator[Row]:
        """Rows of one model."""
        yield from _matrix_rows(step, name, jax.device_get(self._weights(_two_dimensional(matrices))))
        if self._sets:
            after = self._vectors(matrices)
            for which, one in self._sets.items():
                found = jax.device_get(self._shifts(self._before[which], after[which]))
                yield from _vector_rows(step, name, which, one.positions, found)

    def unedited(self) -> Iterator[Row]:
        """Rows of the matrices that no update writes, of the same projections."""
        kinds = {_projection(path) for path in self.first}
        others = {
            path: jnp.asarray(matrix, jnp.float32)
            for path, matrix in self.frozen.items()
            if _projection(path) in kinds and matrix.ndim == 2
        }
        if others and self.config.weights:
            found = jax.device_get(self._weight_function(self._reference(others))(others))
            yield from _matrix_rows(0, "unedited", found)

    def random(self, found: Trajectory, step: int, now: Matrices) -> Matrices:
        """The null model: the first matrices, each with a random change that matches the true one."""
        assert self.config.null is not None
        match = self.config.null
        # The norm is that of the difference; and what `finalize` does is in no factors.
        ranked = match != "norm" and found.folder.low_rank and self._finalize is as_they_are
        changes = found.change(0, step) if ranked else {}
        result = {}
        for i, (path, first) in enumerate(self.first.items()):
            change = changes.get(path, now[path] - first)
            if isinstance(change, LowRank) and change.left.shape[1] > min(first.shape):
                change = now[path] - first
            key = jax.random.fold_in(jax.random.fold_in(self.key, step), i)
            result[path] = added(first, random_update(key, change, match))
        return result


def _projection(path: str) -> str:
    """`layers.3.mlp.down.kernel` is mlp.down.kernel."""
    return path.split(".", 2)[-1] if path.startswith("layers.") else path


def _matrix_rows(step: int, model: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    for where, table in found.items():
        yield from (Row(step, model, where, "", "", what, float(value)) for what, value in table.items())


def _two_dimensional(matrices: Matrices) -> Matrices:
    """Without the scales and biases that editors of whole models write too."""
    return {path: matrix for path, matrix in matrices.items() if matrix.ndim == 2}


def _vector_rows(
    step: int, model: str, which: str, positions: tuple[str, ...], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[Row]:
    """Arrays [layers, positions] by vector and measure, as rows."""
    for vector, table in found.items():
        for what, values in table.items():
            for layer, by_position in enumerate(values):
                where = vector if vector == "final" else f"layers.{layer}.{vector}"
                for position, value in zip(positions, by_position, strict=True):
                    yield Row(step, model, where, which, position, what, float(value))
