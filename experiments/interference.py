"""How far an edited layer's outputs move for facts that are not edited: what a change of weights is to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import spearmanr

from experiments.asking import known_controls
from experiments.common import NULLS, Arm, Json, Study, kept, models_at, steps_of
from experiments.drawing import Tables, at_measurements, changes, shown
from jaxedit.data.encode import encode_requests
from jaxedit.diagnostics.norms import drift
from jaxedit.lookup import bare_rows, rows_of, split_pass
from jaxedit.pipeline import trajectory
from jaxedit.pipeline.prepare import Prepared
from jaxedit.pipeline.used import walk_used
from jaxedit.report.record import layer_of
from jaxedit.trajectory.replay import Matrices
from jaxedit.types import Params

Moved = Mapping[str, Sequence[Json]]
"""`moved` of every arm, by seed."""


def moved(study: Study, arm: Arm, seed: int) -> Json:
    """`||K (W_t - W_0)|| / ||K W_0||` every `every` facts, by model; empty without control facts.

    K are the keys at the last subject token of the control facts in the unedited model, one a row. Of several
    layers the mean. Of matrices that have keys alone: down-projections.
    """
    controls = study.beside(study.controls, "controls.jsonl")
    if controls is None:
        return {}
    return kept(
        study, arm, seed, f"{study.every}.moved.json", lambda path: _measure(study, path, seed, controls)
    )


def _measure(study: Study, path: Path, seed: int, controls: str) -> Json:
    found, config, prepared = trajectory(path)
    first = found.at(0)
    keys = lookup_keys(prepared, first, controls)
    rows: dict[str, list[float]] = {}
    for step, now in walk_used(prepared, found, steps_of(study, found, config)):
        for name, matrices in models_at(first, now, seed, step).items():
            each = [drift(k @ matrices[at], k @ first[at]).relative for at, k in keys.items()]
            rows.setdefault(name, []).append(float(np.mean(each)))
    return rows


def lookup_keys(prepared: Prepared, first: Matrices, controls: str) -> dict[str, Float[Array, "N d_k"]]:
    """The inputs of the edited down-projections at the last subject token of the facts that the model knows."""
    checkpoint = prepared.checkpoint
    model, limit = checkpoint.model, checkpoint.model.config.max_positions
    layers = {layer_of(path): path for path in first}
    if set(layers.values()) != {model.config.edited_path(layer) for layer in layers}:
        raise SystemExit(f"{sorted(first)} are not down-projections alone: they have no keys")
    facts = known_controls(controls, checkpoint)
    requests = encode_requests(facts, checkpoint.tokenizer, max_length=limit)
    decoder = model.bind(Params(first, prepared.params.frozen))
    split = split_pass(decoder, rows_of(requests), min(layers), max(layers))
    bare = bare_rows(requests)
    return {path: jnp.asarray(split.trace.key[layer][bare, 0]) for layer, path in layers.items()}


ABILITIES = {"recall": -1.0, "kl": 1.0}  # and the sign with which each goes with loss
ENOUGH = 5  # arms whose order at the end says anything
SIZES = ("norm", "change", "outputs moved")
FORETOLD = (
    "models",
    "when",
    "points",
    *(f"loss of {ability} with {size}" for ability in ("recall", "text") for size in SIZES),
)


def foretold(tables: Tables, far: Moved) -> list[list[Any]]:
    """How well the norm, the size and the place of a change rank models by what they lost.

    Rows of a table with the head `FORETOLD`: Spearman's correlation within each seed over arms and measurements, and
    over arms at the end, with its band over seeds; 1 where more change is always more loss. Text is the KL from the
    unedited model. None where outputs were not measured.
    """
    if not all(one for found in far.values() for one in found):
        return []
    groups = (("edited",), tuple(NULLS), ("edited", *NULLS))
    kinds = [(models, slice(1, None), "on the way") for models in groups]
    if len(tables) >= ENOUGH:
        kinds += [(("edited",), slice(-1, None), "at the end")]
    rows, seeds = [], min(map(len, tables.values()))
    for models, when, name in kinds:
        by_seed = [_points(tables, far, models, when, seed) for seed in range(seeds)]
        ranks = [
            shown(
                [
                    float(spearmanr(points[size], sign * np.array(points[ability])).statistic)
                    for points in by_seed
                ]
            )
            for ability, sign in ABILITIES.items()
            for size in SIZES
        ]
        rows.append([", ".join(models), name, len(by_seed[0]["norm"]), *ranks])
    return rows


def _points(
    tables: Tables, far: Moved, models: Sequence[str], when: slice, seed: int
) -> dict[str, list[float]]:
    """Measurements of one seed, all arms behind each other."""
    points: dict[str, list[float]] = {name: [] for name in (*ABILITIES, *SIZES)}
    for label, found in tables.items():
        table = found[seed]
        for model in models:
            sizes = at_measurements(table, model), changes(table), far[label][seed][model]
            columns = [*(table[model][ability] for ability in ABILITIES), *sizes]
            for name, values in zip(points, columns, strict=True):
                points[name] += list(values)[when]
    return points
