"""What editors do on several devices against what they do on one; a program of its own, run by test_devices.py.

    JAX_NUM_CPU_DEVICES=8 python -m tests.editors.spread memit ft sequences ...

"sequences" are many of MEMIT with history at once, divided among the devices.

Prints the largest relative difference of the change of any matrix, by editor and way.
"""

import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.data import pad_requests
from jaxedit.parallel import Devices, devices_for, placed_facts
from jaxedit.trajectory.run import Chunk, many_function, stack
from jaxedit.types import Requests
from tests.cases import Case, make_case
from tests.editors.rows import make_row

SEQUENCES = "sequences"
COLLECTIVE = re.compile(r"all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter")
WAYS: dict[str, Devices] = {
    "pmap": devices_for("pmap"),
    "mesh-data": devices_for("mesh"),
    "mesh-tensor": devices_for("mesh", tensor=2),
    "mesh-pieces": replace(devices_for("mesh", tensor=4), pieces=2),
}


def changes(name: str, gpt2: Case, devices: Devices) -> dict[str, np.ndarray]:
    """What two updates change of every matrix; the second batch is written on what the first left."""
    row = make_row(name, gpt2, devices)
    params, state = row.params, row.state
    first = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *row.batches[:2])
    for batch in (first, row.batches[2]):
        params, state, info = row.update(params, state, placed_facts(filled(batch), devices))
        assert bool(info.finite)
    return {path: np.asarray(params.edited[path]) - np.asarray(w) for path, w in row.params.edited.items()}


def sequences(gpt2: Case, devices: Devices) -> dict[str, np.ndarray]:
    """What eight sequences of two updates, in other orders, change of every matrix."""
    row = make_row("memit-history", gpt2)
    facts = jax.tree.map(lambda *x: jnp.concatenate(x), *row.batches[:2])

    def chunk(first: int, second: int) -> Chunk:
        batches = [jax.tree.map(lambda x: x[i : i + 1], facts) for i in (first, second)]  # noqa: B023
        return Chunk(stack(batches), None, jnp.ones(2, bool))

    orders = [(i, j) for i in range(4) for j in range(4) if i != j][:8]
    edited, state = stack([(row.params.edited, row.state)] * 8)
    apply = many_function(row.editor, devices=devices)
    after, *_ = apply(
        jax.tree.map(jnp.copy, edited), row.params.frozen, state, stack([chunk(*x) for x in orders])
    )
    return {path: np.asarray(after[path]) - np.asarray(edited[path]) for path in after}


def filled(batch: Any) -> Any:
    """Eight facts, the last ones padding; rows of text are repeated."""
    if isinstance(batch, Requests):
        return pad_requests(batch, 8)
    return jax.tree.map(lambda x: jnp.concatenate([x] * (8 // len(x))), batch)


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    size = max(float(np.linalg.norm(x)) for x in expected.values())
    return max(float(np.linalg.norm(found[path] - x)) for path, x in expected.items()) / size


def collectives_in_loops(gpt2: Case) -> list[str]:
    """Collectives within compiled loops of MEMIT with facts over a mesh, and within all they call."""
    devices = WAYS["mesh-data"]
    row = make_row("memit", gpt2, devices)
    batch = placed_facts(filled(row.batches[0]), devices)
    text = jax.jit(row.editor.update).lower(row.params, row.state, batch).compile().as_text()
    parts = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", text)
    computations = {part.removeprefix("ENTRY ").split(" ")[0]: part for part in parts}
    assert COLLECTIVE.search(text)  # values are gathered once they are found
    reached, ahead = set(), set(re.findall(r"body=(%[\w.-]+)", text))
    assert ahead
    while ahead:
        reached |= ahead
        called = {name for body in ahead for name in re.findall(r"%[\w.-]+", computations[body])}
        ahead = (called & computations.keys()) - reached
    return sorted({kind for body in reached for kind in COLLECTIVE.findall(computations[body])})


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        gpt2 = make_case("gpt2", Path(folder))
    report: dict[str, Any] = {"devices": jax.device_count(), "collectives": collectives_in_loops(gpt2)}
    for name in (name for name in names if name != SEQUENCES):
        expected = changes(name, gpt2, devices_for("one"))
        report[name] = {
            way: difference(changes(name, gpt2, devices), expected) for way, devices in WAYS.items()
        }
    if SEQUENCES in names:
        expected = sequences(gpt2, devices_for("one"))
        report[SEQUENCES] = {
            way: difference(sequences(gpt2, WAYS[way]), expected) for way in ("pmap", "mesh-data")
        }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
