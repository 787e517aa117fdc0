"""The growth laws of a run's matrices as plain data."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.diagnostics.growth import LEAST, Bootstrap, Comparison, Fit, bootstrap, compare, winner
from jaxedit.diagnostics.laws import LAWS
from jaxedit.pipeline.measured import Row

SERIES = ("path_norm", "path_distance")


def growth_record(rows: Iterable[Row], seed: int = 0, repeats: int = 200) -> dict[str, Any]:
    """By matrix, for ||W_t|| and ||W_t - W_0||: every law's fit with its 95% interval, and which law wins.

    Empty for paths of fewer than `LEAST` updates. The winner is None where the law that fits best does not
    foresee best. `alignment_share` is the reason: see `jaxedit.diagnostics.path.alignment_share`.
    """
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.measure.startswith("path_"):
            columns[row.where][row.measure].append(row.value)
    series = [(path, name) for path in columns for name in SERIES]
    if not series or len(columns[series[0][0]][SERIES[0]]) < LEAST:
        return {}
    values = np.array([columns[path][name] for path, name in series])
    found, drawn = _fitted(values, seed, repeats)
    record: dict[str, Any] = {
        path: {"alignment_share": table["path_alignment_share"][-1]} for path, table in columns.items()
    }
    for i, (path, name) in enumerate(series):
        one, spread = jax.tree.map(lambda x: x[i], (found, drawn))  # noqa: B023
        laws = {law: _law(law, one.fits[law], spread[law], one.weight[law]) for law in LAWS}
        record[path][name] = {"winner": winner(one), "laws": laws}
    return record


def _fitted(values: np.ndarray, seed: int, repeats: int) -> tuple[Comparison, dict[str, Bootstrap]]:
    """All laws for S series of T steps, on the host."""
    key = jax.random.key(seed)

    def one(y: Array) -> tuple[Comparison, dict[str, Bootstrap]]:
        steps = jnp.arange(1.0, len(y) + 1)
        return compare(steps, y), {law: bootstrap(law, steps, y, key, repeats) for law in LAWS}

    with jax.enable_x64(True):  # else the values would be rounded to float32 on their way in
        return jax.device_get(jax.jit(lambda values: jax.lax.map(one, values))(values))


def _law(law: str, found: Fit, drawn: Bootstrap, weight: np.ndarray) -> dict[str, Any]:
    columns = {"value": found.params, "error": drawn.error, "low": drawn.low, "high": drawn.high}
    params = {
        name: {column: float(x[i]) for column, x in columns.items()} for i, name in enumerate(LAWS[law].names)
    }
    scores = {name: float(getattr(found, name)) for name in ("rmse", "r2", "aicc", "bic", "foresight")}
    return {"params": params, "weight": float(weight)} | scores
