"""Into how many pieces a run's batches are cut so that they fit the memory of a device."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.data.encode import request_shape
from jaxedit.data.facts import Fact
from jaxedit.editors import method
from jaxedit.editors.locate import LocateConfig
from jaxedit.editors.objective import FactConfig
from jaxedit.errors import ConfigError
from jaxedit.memory import KEPT, Cut, Work, activation_bytes, cut_for, device_memory
from jaxedit.models.columns import column_names
from jaxedit.models.packing import Size
from jaxedit.models.products import FORWARD
from jaxedit.models.sources import Checkpoint
from jaxedit.parallel import OneDevice
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.sizes import sizes_for
from jaxedit.processes import least_bytes

TRAINED = 4  # times the edited matrices while they are trained: two moments, the gradient, the result
INVERSES = 5  # times the second moments while they are factorised: one in float32, two in float64
LONGEST = 100  # facts whose tokens are counted
WHOLE = Cut(1, False, 0)


def cut_of(
    config: RunConfig, checkpoint: Checkpoint, facts: Sequence[Fact], contexts: Sequence[str], settings: Any
) -> Cut:
    """As the configuration asks, else as memory allows: with pieces as few as possible, remat only where it must.

    Hypernetworks and editors that take one gradient are not cut. Raises ConfigError where rows of text cannot be
    cut into equal pieces of `micro_batch`.
    """
    work, devices = work_of(config, checkpoint, facts, contexts, settings), config.devices
    if work is None:
        return WHOLE._replace(columns=bool(devices.columns))
    text = method(config.editor).request == "text"
    batch = (config.batch_size or 1) if text else min(config.batch_size or len(facts), len(facts))
    # Over local devices only values are spread, not gradients.
    spread = isinstance(settings, LocateConfig) or devices.way == "mesh"
    each = -(-batch // checkpoint.model.placement.parts) if spread else batch
    model, itemsize = checkpoint.model.config, jnp.dtype(config.dtype).itemsize
    memory = KEPT * least_bytes(device_memory()) if devices.memory is None else devices.memory * 2**30
    free = memory - resident_bytes(config, checkpoint, settings)
    found = cut_for(each, model, work, itemsize, max(free, 1))
    remat = found.remat if devices.remat is None else devices.remat
    pieces = found.pieces if devices.micro_batch is None else -(-each // devices.micro_batch)
    if text:  # rows are not padded
        if devices.micro_batch is not None and batch % pieces:
            raise ConfigError(
                f"{batch} rows of text cannot be cut into {pieces} equal pieces: change micro_batch"
            )
        pieces = next(n for n in range(pieces, batch + 1) if batch % n == 0)
    together = -(-each // pieces)
    sizes: tuple[Size, ...] = ()
    if isinstance(settings, LocateConfig):
        limit = checkpoint.model.config.max_positions
        sizes = sizes_for(facts, checkpoint.tokenizer, len(contexts), together, limit)
    columns = devices.columns
    if columns is None:
        few = few_tokens(together, work, settings) and isinstance(checkpoint.model.placement, OneDevice)
        columns = few and copied_bytes(config, checkpoint, settings) < free / 4
    return Cut(pieces, remat, together * activation_bytes(model, work, itemsize, remat), columns, sizes)


def few_tokens(facts: int, work: Work, settings: Any) -> bool:
    """Whether products of so few tokens at a time gain from `jaxedit.models.columns`."""
    smallest = min(settings.values.shares, default=1.0) if isinstance(settings, LocateConfig) else 1.0
    return jax.default_backend() == "cpu" and facts * work.tokens * smallest <= FORWARD


def copied_bytes(config: RunConfig, checkpoint: Checkpoint, settings: Any) -> int:
    """What transposed copies of the frozen matrices take."""
    model = checkpoint.model
    frozen = model.shapes.keys() - set(method(config.editor).paths(model, settings))
    numbers = sum(int(np.prod(model.shapes[path])) for path in column_names(model.config, frozen))
    return numbers * jnp.dtype(config.dtype).itemsize


def work_of(
    config: RunConfig, checkpoint: Checkpoint, facts: Sequence[Fact], contexts: Sequence[str], settings: Any
) -> Work | None:
    """What a fact or a row asks of this run's gradients; None for an editor that is not cut."""
    model = checkpoint.model.config
    if method(config.editor).request == "text":
        row = config.text.length
        return Work(tokens=row, context=row, layers=model.n_layers, reads=row)
    if not isinstance(settings, LocateConfig | FactConfig):
        return None
    longest = sorted(facts, key=lambda fact: len(fact.prompt) + len(fact.target_new))[-LONGEST:]
    shape = request_shape(longest, checkpoint.tokenizer, contexts, max_length=model.max_positions)
    layers = getattr(settings, "layers", None) or (0,)
    if isinstance(settings, LocateConfig):
        rows = len(contexts) + 1
        lowest = max(layers) if settings.values_at == "last" else min(layers)
        above = model.n_layers - 1 - lowest
        return Work(rows * shape.S, shape.P + shape.S, above, len(contexts) * shape.T + 1)
    return Work(shape.P + shape.S, shape.P + shape.S, model.n_layers - min(layers), shape.T)


def resident_bytes(config: RunConfig, checkpoint: Checkpoint, settings: Any) -> int:
    """What lies on a device besides activations: parameters, float32 masters, moments."""
    model, parts = checkpoint.model, method(config.editor)
    sizes = {path: int(np.prod(shape)) for path, shape in model.shapes.items()}
    edited = sum(sizes[path] for path in parts.paths(model, settings))
    frozen = (sum(sizes.values()) - edited) * jnp.dtype(config.dtype).itemsize
    split = config.devices.tensor
    if parts.needs_moments:
        moments = INVERSES * len(settings.layers) * model.config.d_ff**2 * 4
        return (frozen + 4 * 2 * edited) // split + moments
    return (frozen + 4 * (1 + TRAINED) * edited) // split
