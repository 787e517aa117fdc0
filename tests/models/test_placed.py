"""Parameters that are split over devices: read in parts, and the same model."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from jaxedit.models.families import FAMILIES, Bounds, TensorMap, decoder_config
from jaxedit.models.model import Model
from tests.reference.families import RECIPES

from .conftest import Tiny

SMALL = {"n_embd": 24, "n_layer": 1, "n_head": 4, "hidden_size": 24, "num_hidden_layers": 1}
SMALL |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rotary_dim": 2,
    "rotary_pct": 1.0,
    "head_dim": 6,
}
SMALL |= {"intermediate_size": 40, "vocab_size": 50}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_part_of_a_parameter_is_that_part_of_the_whole_and_nothing_else_is_read(name: str) -> None:
    config = decoder_config({"model_type": name} | SMALL)
    shapes, rng = Model(config).shapes, np.random.default_rng(0)
    for tensor in FAMILIES[name].tensors(config):
        ours = {path: rng.standard_normal(shapes[path]) for path in tensor.paths}
        stored, taken = tensor.join(list(ours.values())), []

        def read(bounds: Bounds) -> np.ndarray:
            block = stored[tuple(slice(*pair) for pair in bounds)]  # noqa: B023
            taken.append(block.size)  # noqa: B023
            return block

        for path, whole in ours.items():
            cuts = [((0, n), (0, n // 2), (n // 3, n // 3 + 1), (n // 2, n)) for n in whole.shape]
            for bounds in itertools.product(*cuts):
                expected = whole[tuple(slice(*pair) for pair in bounds)]
                np.testing.assert_array_equal(tensor.part(path, bounds, shapes, read), expected)
                least = expected.size if tensor.groups == 1 else whole_groups(tensor, whole, bounds)
                assert taken.pop() == least


def whole_groups(tensor: TensorMap, parameter: np.ndarray, bounds: Bounds) -> int:
    """Numbers of an interleaved tensor in the groups that the columns within `bounds` touch."""
    *rows, (low, high) = bounds
    width = parameter.shape[-1] // tensor.groups
    columns = (-(-high // width) - low // width) * width * len(tensor.paths)
    return columns * math.prod(end - start for start, end in rows)


def test_every_family_on_a_mesh_is_the_model_on_one_device(made: Callable[[str], Tiny]) -> None:
    folders = {str(made(kind).folder): kind for kind in ("gpt2", "llama", *RECIPES)}
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "tests.models.spread", *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = {folders[folder]: values for folder, values in json.loads(done.stdout).items()}
    assert len(report) == len(FAMILIES)
    for kind, values in report.items():
        assert values["differing"] == [], kind
        assert values["difference"] <= 1e-5, kind
        assert values["held"] < 0.6, kind  # norms and biases are whole on every device
