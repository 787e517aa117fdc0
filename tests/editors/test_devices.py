"""Editors on eight virtual devices do what they do on one."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxedit.editors import METHODS
from jaxedit.errors import ConfigError
from jaxedit.parallel import LocalDevices, OneDevice, devices_for, partition, require_equal_parts
from tests.cases import Case, relative

from .rows import make_row


def spread(*names: str) -> dict[str, Any]:
    """The report of tests.editors.spread: the number of devices is fixed once JAX has started."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "tests.editors.spread", *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_agreement(report: dict[str, Any], names: list[str]) -> None:
    assert report["devices"] == 8
    found = {(name, way): value for name in names for way, value in report[name].items()}
    assert len(found) == 4 * len(names)
    assert {key: value for key, value in found.items() if not value <= 1e-5} == {}


def test_facts_spread_over_eight_devices_give_the_update_of_one() -> None:
    names = ["memit", "ft"]
    report = spread(*names)
    require_agreement(report, names)
    assert report["collectives"] == []


@pytest.mark.slow
def test_sequences_spread_over_eight_devices_are_those_of_one() -> None:
    found = spread("sequences")["sequences"]
    assert found.keys() == {"pmap", "mesh-data"}
    assert max(found.values()) <= 1e-5


@pytest.mark.slow
def test_every_editor_gives_the_update_of_one_device_on_eight() -> None:
    require_agreement(spread(*METHODS), list(METHODS))


@pytest.mark.parametrize("name", ["memit", "pretrain"])
def test_pieces_and_layers_computed_again_give_the_same_update(name: str, gpt2: Case) -> None:
    rows = [make_row(name, gpt2), make_row(name, gpt2, OneDevice(pieces=2), remat=True)]
    batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *rows[0].batches[:2])
    whole, cut = (jax.jit(row.editor.update)(row.params, row.state, batch) for row in rows)
    for path in rows[0].paths:
        before = rows[0].params.edited[path]
        assert relative(cut[0].edited[path] - before, whole[0].edited[path] - before) <= 1e-5


def test_unequal_parts_are_refused() -> None:
    work = LocalDevices((jax.devices()[0],) * 2)
    with pytest.raises(ConfigError, match="3 rows of facts cannot be cut into 2 equal parts"):
        work.run(lambda shared, facts: facts, (), jnp.zeros((3, 2)))
    require_equal_parts(jnp.zeros((4, 2)), 2)


@pytest.mark.parametrize(("way", "tensor"), [("one", 2), ("pmap", 2), ("mesh", 0), ("mesh", 7)])
def test_ways_that_cannot_be_are_refused(way: Any, tensor: int) -> None:
    with pytest.raises(ConfigError, match=f"tensor is {tensor}"):
        devices_for(way, tensor)


def test_only_what_divides_is_split() -> None:
    assert partition("layers.0.mlp.up.kernel", (8, 12), 4) == partition("head.kernel", (8, 12), 4)
    assert tuple(partition("layers.0.mlp.up.kernel", (8, 12), 4)) == (None, "tensor")
    assert tuple(partition("layers.0.mlp.down.kernel", (12, 8), 4)) == ("tensor", None)
    for path, shape in (
        ("layers.0.mlp.up.kernel", (8, 10)),
        ("embedding", (9, 8)),
        ("final_norm.scale", (8,)),
    ):
        assert tuple(partition(path, shape, 4)) == ()
