"""Models loaded onto several devices against one; a program of its own, run by test_placed.py.

    JAX_NUM_CPU_DEVICES=8 python -m tests.models.spread FOLDER ...

Prints by folder the largest difference of logits on a mesh of 4 x 2 devices, the parameters that differ in any bit,
and how much of the model each device holds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import read_json
from jaxedit.models.weights import load_safetensors_folder
from jaxedit.parallel import devices_for, placed_facts


def compare(folder: Path) -> dict[str, Any]:
    config, devices = decoder_config(read_json(folder / "config.json")), devices_for("mesh", tensor=2)
    whole = load_safetensors_folder(folder, config)
    spread = load_safetensors_folder(folder, config, devices=devices)
    tokens = np.random.default_rng(0).integers(3, 300, (4, 12))
    logits = jax.jit(lambda params, rows: Model(config).bind(params)(rows))
    expected = np.asarray(logits(whole, tokens))
    found = np.asarray(logits(spread, placed_facts(tokens, devices)))
    size = sum(leaf.nbytes for leaf in whole.values())
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in spread.values())
    return {
        "difference": float(np.abs(found - expected).max()),
        "differing": [path for path in whole if not np.array_equal(whole[path], spread[path])],
        "held": held / size,
    }


def main(folders: list[str]) -> None:
    assert jax.device_count() == 8
    sys.stdout.write(json.dumps({folder: compare(Path(folder)) for folder in folders}))


if __name__ == "__main__":
    main(sys.argv[1:])
