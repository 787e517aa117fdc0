"""The facts of a run as chunks of equal-shaped arrays, so that a run compiles once or twice."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxedit.data.corpus import read_text
from jaxedit.data.encode import encode_requests, request_shape
from jaxedit.data.facts import Fact
from jaxedit.data.probes import encode_probes
from jaxedit.data.shapes import RequestShape, pad_probes, pad_requests
from jaxedit.data.text import encode_text
from jaxedit.editors import method
from jaxedit.errors import ConfigError, FactError
from jaxedit.evaluation.edits import room_of
from jaxedit.models.packing import Size
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.prepare import Prepared
from jaxedit.trajectory.run import Chunk, stack
from jaxedit.types import Probes, Requests, TextBatch

WORTH = 24
"""Chunks from which on a second program of fewer tokens gains more than it costs to compile."""


class Planned(NamedTuple):
    """A chunk before it is run."""

    first: int  # its first update
    batches: list[list[Fact]]  # one for each update
    shape: tuple[int, ...]
    chunk: Chunk  # padded to the length of all chunks


class Plan(Protocol):
    """How a run is cut into updates and chunks."""

    batches: list[list[Fact]]  # the facts of every update
    length: int  # updates of a chunk's arrays
    room: Size | None  # that scoring an update needs, where its facts lie on one device

    @property
    def updates(self) -> int:
        """How many updates there are."""

    def chunks(self, first: int) -> Iterator[Planned]:
        """All chunks from update number `first` on."""

    def planned(self, first: int, count: int, shape: tuple[int, ...]) -> Planned:
        """Updates `first` .. `first + count - 1` in arrays of this shape, inactive padding behind them."""


def plan_of(config: RunConfig, prepared: Prepared) -> Plan:
    """The plan for what the run's editor takes."""
    text = method(config.editor).request == "text"
    return TextPlan(config, prepared) if text else FactPlan(config, prepared)


class FactPlan:
    """Batches of facts."""

    def __init__(self, config: RunConfig, prepared: Prepared):
        self._tokenizer = prepared.checkpoint.tokenizer
        self._limit = prepared.checkpoint.model.config.max_positions
        self._contexts = prepared.contexts
        size = config.batch_size or len(prepared.facts)
        self.batches = [prepared.facts[i : i + size] for i in range(0, len(prepared.facts), size)]
        self._first_case = np.cumsum([0, *map(len, self.batches)])
        self._size = equal_parts(
            min(size, len(prepared.facts)), prepared.devices.parts, prepared.devices.pieces
        )
        self.length = min(config.chunk, len(self.batches))
        self._needed = [self._shape(batch) for batch in self.batches]
        self._small, self._large = two_shapes(
            [largest(self._needed[i : i + self.length]) for i in range(0, len(self.batches), self.length)]
        )
        self._probes: Probes | None = None
        self.room: Size | None = None
        if config.score:
            self._probes = encode_probes(prepared.facts, self._tokenizer, max_length=self._limit)
            if prepared.devices.parts == 1:
                self.room = room_of(self._probes, [self._rows(update) for update in range(self.updates)])

    @property
    def updates(self) -> int:
        """How many updates there are."""
        return len(self.batches)

    def chunks(self, first: int) -> Iterator[Planned]:
        """All chunks from update number `first` on."""
        for start, count in spans(first, self.updates, self.length):
            fits = fit(largest(self._needed[start : start + count]), self._small)
            yield self.planned(start, count, self._small if fits else self._large)

    def planned(self, first: int, count: int, shape: tuple[int, ...]) -> Planned:
        """Updates `first` .. `first + count - 1` in arrays of this shape, inactive padding behind them."""
        shape = RequestShape(*shape)
        batches = self.batches[first : first + count]
        requests, probes = [], []
        for update, batch in enumerate(batches, first):
            rows = self._rows(update)
            encoded = encode_requests(
                batch,
                self._tokenizer,
                self._contexts,
                max_length=self._limit,
                shape=shape,
                cases=range(rows.start, rows.stop),
            )
            requests.append(pad_requests(encoded, self._size))
            if self._probes is not None:
                probes.append(pad_probes(Probes(*(x[rows] for x in self._probes)), self._size))
        missing = self.length - count
        requests += [empty(requests[-1])] * missing
        probes += probes[-1:] * missing
        active: Any = np.arange(self.length) < count
        return Planned(
            first, batches, tuple(shape), Chunk(stack(requests), stack(probes) if probes else None, active)
        )

    def _rows(self, update: int) -> slice:
        """The facts of an update among all."""
        return slice(self._first_case[update], self._first_case[update + 1])

    def _shape(self, facts: Sequence[Fact]) -> RequestShape:
        return request_shape(facts, self._tokenizer, self._contexts, max_length=self._limit)


class TextPlan:
    """Batches of rows of a text, none of which is a fact."""

    def __init__(self, config: RunConfig, prepared: Prepared):
        rows, stream = config.batch_size or 1, config.text
        wanted = stream.skip + config.count
        self._rows = encode_text(
            read_text(str(stream.file)),
            prepared.checkpoint.tokenizer,
            length=stream.length,
            batch=rows,
            limit=wanted * rows * stream.length,
        )[stream.skip :]
        if len(self._rows) < config.count:
            raise FactError(
                f"{stream.file} gives {len(self._rows)} batches of {rows} rows of {stream.length} tokens after the "
                f"first {stream.skip}, {config.count} are asked for: lower --count, or give a longer text"
            )
        self.batches: list[list[Fact]] = [[] for _ in self._rows]
        self.room: Size | None = None
        self.length = min(config.chunk, len(self._rows))

    @property
    def updates(self) -> int:
        """How many updates there are."""
        return len(self._rows)

    def chunks(self, first: int) -> Iterator[Planned]:
        """All chunks from update number `first` on."""
        for start, count in spans(first, self.updates, self.length):
            yield self.planned(start, count, self._rows[0].tokens.shape)

    def planned(self, first: int, count: int, shape: tuple[int, ...]) -> Planned:
        """Updates `first` .. `first + count - 1`; all batches are of one shape."""
        rows = self._rows[first : first + count]
        padding = [TextBatch._make((rows[-1].tokens, np.zeros(shape, bool)))] * (self.length - count)
        active: Any = np.arange(self.length) < count
        return Planned(first, [[]] * count, shape, Chunk(stack([*rows, *padding]), None, active))


def spans(first: int, updates: int, length: int) -> Iterator[tuple[int, int]]:
    """First update and number of updates of all chunks from update `first` on.

    A chunk ends at the next multiple of `length`, where the run is looked at; after one that was cut short the next
    is short too.
    """
    while first < updates:
        end = min((first // length + 1) * length, updates)
        yield first, end - first
        first = end


def equal_parts(size: int, parts: int, pieces: int = 1) -> int:
    """The batch padded to equal pieces of equal parts. Raises ConfigError where parts would be all padding."""
    if size < parts:
        raise ConfigError(
            f"{size} facts an update cannot be divided among {parts} devices: raise batch_size, or let more "
            f"devices share one copy of the model with devices.tensor"
        )
    return -(-size // (parts * pieces)) * parts * pieces


def two_shapes(needed: Sequence[RequestShape]) -> tuple[RequestShape, RequestShape]:
    """A shape for chunks whose tails are not above the median, and one that holds all; the same for few chunks.

    No more than two, since each costs a compilation. Prefixes are run once and share one size; tails are run
    at every step of an optimisation.
    """
    large = largest(needed)
    if len(needed) < WORTH:
        return large, large
    median = sorted(shape.S for shape in needed)[len(needed) // 2]
    small = largest([shape for shape in needed if median >= shape.S])
    return small._replace(P=large.P), large


def largest(shapes: Sequence[RequestShape]) -> RequestShape:
    """The least shape that holds all of these."""
    return RequestShape(*(max(sizes) for sizes in zip(*shapes, strict=True)))


def fit(shape: RequestShape, room: RequestShape) -> bool:
    """Whether arrays of one shape can hold what another needs."""
    return all(size <= most for size, most in zip(shape, room, strict=True))


def empty(requests: Requests) -> Requests:
    """Requests of the same shape that ask for nothing, so that they cost little."""
    fields = requests._asdict()
    nothing = {"weight": np.zeros_like(requests.weight), "case": np.full_like(requests.case, -1)}
    return Requests(**fields | nothing)
