"""No finite numbers make NaN, whatever they are."""

import functools
from typing import Any

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxedit.diagnostics.activations import shift
from jaxedit.diagnostics.controls import random_update
from jaxedit.diagnostics.leading import leading
from jaxedit.diagnostics.maps import plane_map
from jaxedit.diagnostics.path import path_of_factors
from jaxedit.diagnostics.shifts import GROUPS as VECTOR_GROUPS
from jaxedit.diagnostics.shifts import vector_measures
from jaxedit.diagnostics.weights import GROUPS, reference, weight_measures
from jaxedit.types import LowRank

SHAPE = (9, 5)
KEY = jax.random.key(0)
LARGEST = float(np.finfo(np.float32).max)
finite = st.floats(-LARGEST, LARGEST, width=32)
few = st.sampled_from([0.0, 1.0, -1.0, LARGEST, 2.0**-126, 2.0**-66, 2.0**66])
matrices = arrays(np.float32, SHAPE, elements=st.one_of(finite, few))
quick = settings(max_examples=40, deadline=None, derandomize=True)


@functools.cache
def compiled(name: str) -> Any:
    measures = {
        "weights": lambda w, first: weight_measures(w, reference(first, 2, KEY), tuple(GROUPS), KEY),
        "vectors": lambda x, y: vector_measures(x, y, tuple(VECTOR_GROUPS), 2, KEY),
        "paths": lambda w, x: path_of_factors(w, LowRank(x[None, :, :2], x[None, :2])),
        "updates": lambda w, x: (
            random_update(KEY, w / 1e3), random_update(KEY, LowRank(w[:, :2] / 1e20, x[:2] / 1e20), "spectrum")
        ),
        "others": lambda x, y: (shift(x, y), plane_map(x, y, KEY), leading(x, 2, KEY)),
    }  # fmt: skip
    return jax.jit(measures[name])


@quick
@given(matrices, matrices)
def test_weight_measures_have_no_nan(one: np.ndarray, other: np.ndarray) -> None:
    clean(compiled("weights")(one, other))


@quick
@given(matrices, matrices)
def test_vector_measures_have_no_nan(one: np.ndarray, other: np.ndarray) -> None:
    clean(compiled("vectors")(one, other))
    clean(compiled("others")(one, other))


@quick
@given(matrices, matrices)
def test_paths_and_random_updates_have_no_nan(one: np.ndarray, other: np.ndarray) -> None:
    clean(compiled("paths")(one, other))
    clean(compiled("updates")(one, other))


def clean(found: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert not np.isnan(leaf).any(), jax.tree_util.keystr(path)
