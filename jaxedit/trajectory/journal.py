"""The journal of a run: one line for all that is finished, each vouching for the lines before it.

A line is `{"digest": d, "entry": {"kind": k, ...}}`, where d is the SHA-256 of the digest before it and of
the entry as it stands there. It counts once its line break is on the disk; what a stop leaves behind the
last line break is dropped when the run goes on. It holds no times and no machine, so that the same run
leaves the same journal.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxedit.configs import build
from jaxedit.digests import sha256
from jaxedit.disk import append
from jaxedit.errors import ConfigError, RunError
from jaxedit.trajectory.guard import Policy


@dataclass(frozen=True)
class Start:
    """The first entry: what the run is made of. All but the format are SHA-256."""

    format: int
    config: str  # of config.json
    environment: str  # of environment.json
    facts: str  # of facts.jsonl
    edited: str  # of the matrices before the first update, as `files.fingerprint` makes it
    state: str = ""  # of the editor's state then; empty where it remembers nothing


@dataclass(frozen=True)
class Finished:
    """A chunk of consecutive updates that is on the disk with all that belongs to it."""

    number: int
    first: int  # its first update
    updates: int
    shape: tuple[int, ...]  # sizes of the request arrays, for running it once more
    factors: str  # SHA-256 of the file of factors; empty where updates are dense
    metrics: str  # SHA-256 of its lines in metrics.jsonl
    metrics_end: int  # where these lines end
    edited: str  # fingerprint of the matrices after it
    state: str = ""  # of the editor's state after it; empty where it remembers nothing
    refused: tuple[int, ...] = ()  # updates that the guard left out

    @property
    def after(self) -> int:
        """How many updates there are up to its end."""
        return self.first + self.updates


@dataclass(frozen=True)
class PolicyChange:
    """From here on the guard has another policy than the configuration says."""

    policy: Policy


@dataclass(frozen=True)
class End:
    """The last entry: all updates are done and scored."""

    summary: str  # SHA-256 of summary.json


MOST_UPDATES, MOST_BYTES = 2**20, 2**60  # of a chunk, of metrics.jsonl; refused beyond
Entry: TypeAlias = Start | Finished | PolicyChange | End
KINDS: dict[str, type] = {"start": Start, "chunk": Finished, "policy": PolicyChange, "end": End}
NAMES = {cls: name for name, cls in KINDS.items()}


class Journal(NamedTuple):
    """What a journal says, and how far it can be believed."""

    entries: tuple[Entry, ...]
    digest: str  # of the last line
    size: int  # bytes up to its line break
    unfinished: int  # bytes behind it

    @property
    def start(self) -> Start:
        """Its first entry."""
        assert isinstance(self.entries[0], Start)
        return self.entries[0]

    @property
    def chunks(self) -> tuple[Finished, ...]:
        """All finished chunks."""
        return tuple(entry for entry in self.entries if isinstance(entry, Finished))

    @property
    def updates(self) -> int:
        """Updates in all finished chunks."""
        return self.chunks[-1].after if self.chunks else 0

    @property
    def end(self) -> End | None:
        """The entry of a run that came to its end."""
        last = self.entries[-1] if self.entries else None
        return last if isinstance(last, End) else None

    @property
    def dense_from(self) -> int | None:
        """The first chunk without factors; None where all have some, and the run is of low-rank updates."""
        return next((chunk.number for chunk in self.chunks if not chunk.factors), None)

    @property
    def policy(self) -> Policy | None:
        """The policy that was last changed to."""
        changes = [entry.policy for entry in self.entries if isinstance(entry, PolicyChange)]
        return changes[-1] if changes else None


def line_of(entry: Entry, digest: str) -> tuple[bytes, str]:
    """The line of an entry behind the line with that digest, and the new digest."""
    body = {"kind": NAMES[type(entry)], **asdict(entry)}
    new = sha256((digest + _canonical(body)).encode())
    return (_canonical({"digest": new, "entry": body}) + "\n").encode(), new


def require_open(file: Path, journal: Journal) -> None:
    """Raises RunError where the run came to its end, and nothing may follow."""
    if journal.end is not None:
        raise RunError(f"{file.parent} came to its end already: nothing is written behind it")


def write(file: Path, journal: Journal, entry: Entry) -> Journal:
    """Adds an entry; once this returns it is on the disk. Raises RunError behind the end of a run."""
    require_open(file, journal)
    line, digest = line_of(entry, journal.digest)
    append(file, line)
    return Journal((*journal.entries, entry), digest, journal.size + len(line), 0)


def create(file: Path, start: Start) -> Journal:
    """A new journal with its first entry."""
    return write(file, Journal((), "", 0, 0), start)


def read(file: Path, format: int) -> Journal:
    """Everything up to the last line break.

    Raises RunError naming the line where one is damaged, missing or out of order, and where the format is
    another one than `format`.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{file} is missing: {file.parent} is no run, or its journal was removed") from None
    *lines, rest = content.split(b"\n")
    entries: list[Entry] = []
    digest, last = "", None
    for number, line in enumerate(lines, 1):
        digest, entry = _parse(line, digest, f"{file}, line {number}", entries, last, format)
        entries.append(entry)
        last = entry if isinstance(entry, Finished) else last
    if not entries:
        raise RunError(f"{file} has no finished line: nothing of this run was kept")
    return Journal(tuple(entries), digest, len(content) - len(rest), len(rest))


def _parse(
    line: bytes, digest: str, where: str, before: list[Entry], last: Finished | None, format: int
) -> tuple[str, Entry]:
    good = (
        f"The {len(before)} lines before it are good: keep a copy of the file, cut it there, and "
        f"`jaxedit branch RUN STEP OUT` goes on elsewhere from what they tell"
        if before
        else "Nothing of the run can be trusted"
    )
    try:
        content = json.loads(line)
        found, body = content["digest"], dict(content["entry"])
        kind = KINDS[body.pop("kind")]
        if kind is Start and body.get("format") != format:
            raise RunError(
                f"{where}: run format {body.get('format')!r}; this version of jaxedit reads {format}"
            )
        entry: Entry = build(kind, body, where)
        line_again, expected = line_of(entry, digest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise RunError(f"{where} is damaged ({type(error).__name__}: {error}). {good}.") from None
    if found != expected or line_again != line + b"\n":
        raise RunError(f"{where} is damaged, or a line before it is missing. {good}.")
    if problem := _out_of_order(entry, before, last):
        raise RunError(f"{where}: {problem}. {good}.")
    return expected, entry


def _out_of_order(entry: Entry, before: list[Entry], last: Finished | None) -> str | None:
    if isinstance(entry, Start) == bool(before):
        return "the start is not the first line"
    if before and isinstance(before[-1], End):
        return "there is more behind the end"
    if isinstance(entry, Finished):
        number, first = (last.number + 1, last.after) if last else (0, 0)
        bytes_before = last.metrics_end if last else 0
        if (entry.number, entry.first) != (number, first) or entry.updates < 1:
            return f"chunk {entry.number} of updates from {entry.first} follows {number} chunks of {first} updates"
        possible = entry.updates <= MOST_UPDATES and bytes_before <= entry.metrics_end <= MOST_BYTES
        if not possible or not _within(entry.refused, entry):
            return f"chunk {entry.number} has sizes that cannot be"
    return None


def _within(refused: Iterable[int], entry: Finished) -> bool:
    return all(entry.first <= update < entry.after for update in refused)


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
