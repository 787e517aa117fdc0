"""The growth laws of a run's matrices as plain data."""

import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxedit.diagnostics.growth import LEAST, Bootstrap, Fit, bootstrap, compare, winner
from jaxedit.diagnostics.laws import LAWS
from jaxedit.pipeline.measure import Row

SERIES = ("path_norm", "path_distance")


def growth_record(rows: Iterable[Row], seed: int = 0) -> dict[str, Any]:
    """By matrix, for ||W_t|| and ||W_t - W_0||: every law's fit with its 95% interval, and which law wins.

    Matrices with fewer than `LEAST` updates are left out. The winner is None where the law that fits best does
    not foresee best. `alignment_share` is the reason: see `jaxedit.diagnostics.path.alignment_share`.
    """
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.measure.startswith("path_"):
            columns[row.where][row.measure].append(row.value)
    return {
        path: {"alignment_share": table["path_alignment_share"][-1]}
        | {name: _series(np.array(table[name]), seed) for name in SERIES}
        for path, table in columns.items()
        if len(table[SERIES[0]]) >= LEAST
    }


def _series(values: np.ndarray, seed: int) -> dict[str, Any]:
    steps, key = np.arange(1.0, len(values) + 1), jax.random.key(seed)
    with jax.enable_x64(True):  # else the values would be rounded to float32 on their way in
        found = jax.jit(compare)(steps, values)
        drawn = {law: jax.jit(functools.partial(bootstrap, law))(steps, values, key) for law in found.fits}
    laws = {
        law: _law(law, one, drawn[law]) | {"weight": float(found.weight[law])}
        for law, one in found.fits.items()
    }
    return {"winner": winner(found), "laws": laws}


def _law(law: str, found: Fit, drawn: Bootstrap) -> dict[str, Any]:
    columns = {"value": found.params, "error": drawn.error, "low": drawn.low, "high": drawn.high}
    params = {
        name: {column: float(x[i]) for column, x in columns.items()} for i, name in enumerate(LAWS[law].names)
    }
    return {"params": params} | {
        name: float(getattr(found, name)) for name in ("rmse", "r2", "aicc", "bic", "foresight")
    }
