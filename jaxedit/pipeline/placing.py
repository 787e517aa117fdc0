"""A chunk and what it takes over, on the devices that work on it."""

import jax
from jaxtyping import Array

from jaxedit.parallel import Devices, OneDevice, OnMesh, placed_facts, placed_parameters, replicated
from jaxedit.trajectory.run import Chunk
from jaxedit.types import State


def placed(edited: dict[str, Array], state: State, devices: Devices) -> tuple[dict[str, Array], State]:
    """What a chunk takes over, where the devices work on it; nothing moves that is there already.

    On one device all is committed to it, as what a chunk leaves is: for arrays that are not, it would compile anew.
    """
    if isinstance(devices, OneDevice):
        return jax.device_put((edited, state), jax.local_devices()[0])
    return placed_parameters(edited, devices), replicated(state, devices)


def placed_chunk(chunk: Chunk, devices: Devices) -> Chunk:
    """The facts of every update divided among the devices; rows of text too, where they can be."""
    if not isinstance(devices, OnMesh):
        return jax.device_put(chunk)
    given = (chunk.requests, chunk.probes)
    rows = jax.tree.leaves(chunk.requests)[0].shape[1]
    requests, probes = (
        placed_facts(given, devices, axis=1) if rows % devices.parts == 0 else replicated(given, devices)
    )
    return Chunk(requests, probes, replicated(chunk.active, devices))
