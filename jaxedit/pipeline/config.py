"""The settings of a run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jaxedit.configs import build, require_at_least
from jaxedit.editors import Settings, method
from jaxedit.editors.transforms import read_transform
from jaxedit.errors import ConfigError
from jaxedit.moments import MomentSource
from jaxedit.parallel import Way, check_way
from jaxedit.pipeline.watch_config import Watch, check_watch
from jaxedit.trajectory.guard import Policy


@dataclass(frozen=True)
class Limits:
    """What an update may do, and what becomes of one that does more."""

    policy: Policy = "stop"
    """stop: end the run before it; skip: leave it out; rollback: leave out the whole chunk it is in."""
    edit: float | None = None
    """Largest ||Delta||_F of one update over ||W_0||_F of its matrix."""
    total: float | None = None
    """Largest ||W||_F after an update over ||W_0||_F."""


@dataclass(frozen=True)
class TextStream:
    """A text in batches of `batch_size` rows, in its order."""

    file: str | None = None
    """UTF-8 text file or folder."""
    length: int = 128
    """Tokens a row."""
    skip: int = 0
    """Batches to leave out at its start."""


@dataclass(frozen=True)
class DeviceConfig:
    """Which devices edit, and how work is spread over them."""

    way: Way = "one"
    """one: the first device; pmap: facts over the local devices; mesh: facts over all devices of all processes."""
    tensor: int = 1
    """With "mesh": devices that share the matrices of one copy of the model."""
    distributed: bool = False
    """With "mesh": this is one of several processes. JAX finds the others on Slurm, Open MPI, GKE and TPU pods; else
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them. All see one disk."""
    memory: float | None = None
    """GiB of a device that a run may fill; by default nearly all."""
    micro_batch: int | None = None
    """Facts of a batch, or rows of text, that a device works on at once; by default as many as its memory holds."""
    remat: bool | None = None
    """Compute the inside of layers again for gradients; by default where memory does not hold one fact without."""
    columns: bool | None = None
    """Keep transposed copies of the frozen matrices, which products of few tokens read faster on a CPU; by default
    where an update has few tokens and the copies take at most a quarter of the memory that is left."""


@dataclass(frozen=True)
class RunConfig:
    """A sequence of edits, fully specified: the same configuration gives the same numbers."""

    out: str = "runs/latest"
    """Run folder to write; it must not exist."""
    model: str = "smollm2-135m"
    """Folder, hub id, or built-in name of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; edited matrices are float32 always."""
    facts: str = "world"
    """"world", or a file of facts (CounterFact, zsRE, KnowEdit, JSONL)."""
    skip_invalid: bool = False
    """Leave out facts that cannot be used, instead of stopping."""
    count: int = 30
    """How many facts to edit; for an editor that learns from text, how many batches it reads."""
    known: bool = True
    """Take only facts that the unedited model knows, by measuring."""
    editor: str = "memit"
    """Name of the editor; `jaxedit editors` lists them."""
    settings: Settings = Settings()
    """Departures from the editor's preset."""
    network: str | None = None
    """Trained network of a hypernetwork editor (mend, malmen): a file that `jaxedit train` wrote."""
    text: TextStream = TextStream()
    """What an editor reads that learns from text (pretrain)."""
    warm_up: int = 0
    """Facts of the set beside those to edit that the moments of ultraedit and stableedit count before the first edit,
    without editing them."""
    transforms: tuple[str, ...] = ()
    """Changes of every update before it is written, in this order: "rect:0.4", "spectrum-lock", ..."""
    batch_size: int = 1
    """Facts written by one update; 0 writes all at once."""
    chunk: int = 10
    """Updates between saves; each chunk is one compiled call."""
    moments: MomentSource = MomentSource()
    """Where the second moments of keys come from."""
    limits: Limits = Limits()
    """Updates that are refused."""
    devices: DeviceConfig = DeviceConfig()
    """Several devices: a batch's facts, at least one for each, are divided among them."""
    watch: Watch = field(default_factory=Watch)
    """What is measured on the way."""
    score: bool = True
    """Score every edit right after its update."""
    order: Literal["file", "random"] = "file"
    """Order in which the set's facts are taken and edited: the file's own, or one drawn by the seed."""
    seed: int = 0
    """Of everything random: contexts, sampled text, a random order of facts."""


def check(config: RunConfig) -> None:
    """Raises ConfigError for settings that cannot work, before anything is loaded."""
    chosen = method(config.editor)
    if chosen.needs_net and config.network is None:
        raise ConfigError(
            f"editor {config.editor!r} edits by a trained network: name its file with --network; "
            f"`jaxedit train --editor {config.editor}` makes one"
        )
    if chosen.request == "text" and config.text.file is None:
        raise ConfigError(f"editor {config.editor!r} learns from text: name a file with --text.file")
    require_at_least(config, count=1, chunk=1, batch_size=0, warm_up=0)
    if config.warm_up and not chosen.warms_up:
        raise ConfigError(f"editor {config.editor!r} has no moments of facts to warm up: leave warm_up out")
    check_devices(config.devices)
    check_watch(config.watch, config.chunk, config.devices.distributed)
    for text in config.transforms:
        read_transform(text)
    if not -(2**63) <= config.seed < 2**63:
        raise ConfigError(f"seed is {config.seed}; it must fit 64 bits")
    for name in ("edit", "total"):
        value = getattr(config.limits, name)
        if value is not None and not value > 0:
            raise ConfigError(f"limits.{name} is {value}; it must be above 0")


def check_devices(devices: DeviceConfig) -> None:
    """Raises ConfigError for what cannot work on any devices."""
    check_way(devices.way, devices.tensor)
    if devices.memory is not None and not devices.memory > 0:
        raise ConfigError(f"devices.memory is {devices.memory}; it must be above 0")
    if devices.micro_batch is not None:
        require_at_least(devices, micro_batch=1)
    if devices.distributed and devices.way != "mesh":
        raise ConfigError(f"only way 'mesh' spreads work over processes, not {devices.way!r}")


def config_from(content: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from plain data. Raises ConfigError for names it does not have, with the nearest ones."""
    return build(RunConfig, content)
