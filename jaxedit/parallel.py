"""Several devices: the ways to spread facts over them, and where parameters lie.

An editor says which of its work is per fact by `devices.run(work, shared, facts)`; how that work is spread is a
property of the model it edits (`Model.placement`), so that one editor serves one device, all local devices by
`jax.pmap`, and a mesh of any devices by `jax.shard_map`. The work of a part never waits for another's: facts
that are optimised in compiled loops need no communication before all parts have ended.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxedit.errors import ConfigError

T = TypeVar("T")
Way = Literal["one", "pmap", "mesh"]
Work = Callable[[Any, Any], Any]
"""`(shared, facts) -> results`: all leaves of facts and results lead with the facts, or k rows of each."""

DATA, TENSOR = "data", "tensor"
COLUMNS = ("query.kernel", "key.kernel", "value.kernel", "gate.kernel", "up.kernel", "head.kernel")
ROWS = ("out.kernel", "down.kernel", "embedding")


class Devices(Protocol):
    """How work on facts is spread; hashable, since programs are compiled for it."""

    @property
    def parts(self) -> int:
        """Into how many equal parts facts are cut."""

    @property
    def pieces(self) -> int:
        """Into how many equal pieces each part is cut, that are worked on one after the other to save memory."""

    def run(self, work: Work, shared: Any, facts: Any) -> Any:
        """`work(shared, facts)`, each piece of each part by itself. Raises ConfigError where they are not equal."""

    def gather(self, tree: T) -> T:
        """The same numbers, whole on every device."""


@dataclass(frozen=True)
class OneDevice:
    """All facts together."""

    pieces: int = 1

    @property
    def parts(self) -> int:
        """One."""
        return 1

    def run(self, work: Work, shared: Any, facts: Any) -> Any:
        """`work(shared, facts)`, piece by piece."""
        return in_pieces(work, self.pieces)(shared, facts)

    def gather(self, tree: T) -> T:
        """As it is."""
        return tree


@dataclass(frozen=True)
class LocalDevices:
    """`jax.pmap` over devices of this process; what is not work on facts runs on the first."""

    devices: tuple[jax.Device, ...]
    pieces: int = 1

    @property
    def parts(self) -> int:
        """As many as devices."""
        return len(self.devices)

    def run(self, work: Work, shared: Any, facts: Any) -> Any:
        """A part of the facts on every device; each is sent what is shared."""
        work = jax.pmap(in_pieces(work, self.pieces), in_axes=(None, 0), devices=self.devices)
        return joined(work(shared, cut(facts, self.parts)))

    def gather(self, tree: T) -> T:
        """As it is: one program sees all parts."""
        return tree


@dataclass(frozen=True)
class OnMesh:
    """`jax.shard_map` over the data axis of a mesh; XLA splits the matrices along its tensor axis."""

    mesh: Mesh
    pieces: int = 1

    @property
    def parts(self) -> int:
        """The size of the data axis."""
        return self.mesh.shape[DATA]

    def run(self, work: Work, shared: Any, facts: Any) -> Any:
        """A part of the facts on every row of the mesh."""
        require_equal_parts(facts, self.parts)
        one, divided = PartitionSpec(), PartitionSpec(DATA)
        spread = jax.shard_map(
            in_pieces(work, self.pieces),
            mesh=self.mesh,
            in_specs=(one, divided),
            out_specs=divided,
            axis_names={DATA},
            check_vma=False,
        )
        return spread(shared, facts)

    def gather(self, tree: T) -> T:
        """Replicated over the mesh."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))


ONE_DEVICE = OneDevice()


def devices_for(way: Way, tensor: int = 1) -> Devices:
    """Over all devices there are: local ones for "pmap"; for "mesh" those of all processes, matrices split
    over groups of `tensor` of them.

    Raises ConfigError for a `tensor` that does not divide their number, or that `way` does not know.
    """
    check_way(way, tensor)
    if way == "one":
        return ONE_DEVICE
    if way == "pmap":
        return LocalDevices(tuple(jax.local_devices()))
    count = jax.device_count()
    if count % tensor:
        raise ConfigError(f"tensor is {tensor}; it must divide the number of devices, {count}")
    shape = (count // tensor, tensor)
    return OnMesh(jax.make_mesh(shape, (DATA, TENSOR), axis_types=(AxisType.Auto,) * 2))


def check_way(way: Way, tensor: int) -> None:
    """Raises ConfigError for what cannot work on any devices."""
    if tensor < 1:
        raise ConfigError(f"tensor is {tensor}; it must be at least 1")
    if way != "mesh" and tensor != 1:
        raise ConfigError(f"tensor is {tensor}, but only way 'mesh' splits matrices, not {way!r}")


def in_pieces(work: Work, pieces: int) -> Work:
    """`work` on one piece of the facts after the other, in one compiled loop: memory for one piece."""
    if pieces == 1:
        return work

    def each(shared: Any, facts: Any) -> Any:
        return joined(jax.lax.map(lambda piece: work(shared, piece), cut(facts, pieces)))

    return each


def cut(facts: T, parts: int) -> T:
    """Equal parts along a new leading axis. Raises ConfigError where they are not equal."""
    require_equal_parts(facts, parts)
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), facts)


def joined(parts: T) -> T:
    """The inverse of `cut`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def require_equal_parts(facts: Any, parts: int) -> None:
    """Raises ConfigError where the facts cannot be cut into so many equal parts."""
    for leaf in jax.tree.leaves(facts):
        if leaf.shape[0] % parts:
            raise ConfigError(
                f"{leaf.shape[0]} rows of facts cannot be cut into {parts} equal parts: pad the batch with facts "
                f"of weight 0 (`jaxedit.data.shapes.pad_requests`)"
            )


def placed_parameters(params: Mapping[str, Array], devices: Devices) -> dict[str, Array]:
    """Parameters by path where `devices` want them: on a mesh, matrices split by `partition`."""
    if not isinstance(devices, OnMesh):
        return dict(params)
    return {path: _put(leaf, parameter_sharding(path, leaf.shape, devices)) for path, leaf in params.items()}


def parameter_sharding(path: str, shape: tuple[int, ...], devices: Devices) -> NamedSharding | None:
    """Where a parameter lies on a mesh, split by `partition`; None off a mesh."""
    if not isinstance(devices, OnMesh):
        return None
    return NamedSharding(devices.mesh, partition(path, shape, devices.mesh.shape[TENSOR]))


def partition(path: str, shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """How one parameter is split along the tensor axis (Shoeybi et al. 2019, arXiv 1909.08053).

    Projections into heads and into the MLP by their outputs, those back by their inputs, embeddings by tokens;
    biases, norms, and what does not divide stay whole.
    """
    if path.endswith(COLUMNS) and shape[-1] % parts == 0:
        return PartitionSpec(None, TENSOR)
    if path.endswith(ROWS) and shape[0] % parts == 0:
        return PartitionSpec(TENSOR, None)
    return PartitionSpec()


def placed_facts(tree: T, devices: Devices, axis: int = 0) -> T:
    """Arrays of facts where `devices` work on them; `axis` is that of the facts."""
    if not isinstance(devices, OnMesh):
        return tree
    where = NamedSharding(devices.mesh, PartitionSpec(*[None] * axis, DATA))
    return jax.tree.map(lambda x: _put(x, where), tree)


def replicated(tree: T, devices: Devices) -> T:
    """Whole on every device of a mesh."""
    if not isinstance(devices, OnMesh):
        return tree
    return jax.tree.map(lambda x: _put(x, NamedSharding(devices.mesh, PartitionSpec())), tree)


def _put(x: Any, sharding: NamedSharding | None) -> Array:
    """`device_put`, also where the devices are those of several processes and `x` is whole in each of them."""
    if sharding is None or sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    numbers = np.asarray(x)
    with jax.enable_x64(isinstance(x, jax.Array)):  # a float64 state stays one
        return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def on_one_device(tree: T, devices: Devices) -> T:
    """Whole on the first device, for programs that know of no others."""
    if not isinstance(devices, OnMesh):
        return tree
    return jax.device_put(tree, jax.local_devices()[0])
