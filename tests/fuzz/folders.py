"""Targets: what lies in run folders: journals, documents, lists of checksums, updates, snapshots, changes."""

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from jaxedit.digests import fingerprint, sha256
from jaxedit.errors import JaxeditError
from jaxedit.report.record import read_run
from jaxedit.report.steps import history_table
from jaxedit.trajectory import journal as journals
from jaxedit.trajectory.deltas import Delta, apply_delta, read_delta, write_delta
from jaxedit.trajectory.files import SUMS
from jaxedit.trajectory.snapshots import folder_of
from jaxedit.trajectory.store import RunFolder, factors_name
from tests.fuzz.harness import Target
from tests.fuzz.mutations import VALUES, contents, documents
from tests.trajectory.synthetic import Synthetic, write_run

UPDATES, CHUNK = 4, 2


@functools.cache
def good_run() -> Synthetic:
    """A finished run of two chunks, written once."""
    return write_run(Path(mkdtemp(prefix="fuzz-run-")) / "run", UPDATES, CHUNK)


class Line(NamedTuple):
    """What stands in a line of the journal."""

    digest: str
    entry: dict[str, Any]


@functools.cache
def good_lines() -> tuple[Line, ...]:
    text = (good_run().path / "journal.jsonl").read_text()
    return tuple(Line(**json.loads(line)) for line in text.splitlines())


def chained(entries: list[Any]) -> bytes:
    """A journal of any entries in which every digest is right."""
    digest, lines = "", []
    for entry in entries:
        digest = sha256((digest + journals._canonical(entry)).encode())
        lines.append(journals._canonical({"digest": digest, "entry": entry}) + "\n")
    return "".join(lines).encode()


def fresh(place: Path) -> Path:
    """A copy of the good run."""
    shutil.rmtree(place / "run", ignore_errors=True)
    return Path(shutil.copytree(good_run().path, place / "run"))


def texts(run: Path) -> list[Callable[[], Any]]:
    """Reading all but the arrays."""
    folder, like = RunFolder.open(run), good_run().truth[0]
    return [
        *(functools.partial(folder.read, name) for name in ("config", "environment", "summary")),
        folder.facts_file,
        folder.metrics,
        folder.damages,
        lambda: history_table(folder),
        lambda: read_run(run),
        lambda: folder.require_base("tiny", "0" * 64),
        lambda: folder.origin(like),
    ]


def arrays(run: Path) -> list[Callable[[], Any]]:
    """Reading the arrays in every way."""
    found = good_run().steps(run)
    return [
        lambda: found.folder.state(found._state),
        lambda: found.at(min(3, found.steps)),
        lambda: found.change(0, min(2, found.steps)),
        lambda: found.without([0]),
        lambda: found.resumable(1),
        found.differences,
    ]


def attempt(reads: list[Callable[[], Any]]) -> None:
    """Reads all; raises the first refusal in the end."""
    refused: list[JaxeditError] = []
    for read in reads:
        try:
            read()
        except JaxeditError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def run_journal(place: Path, content: bytes) -> None:
    """A journal with everything else as it was."""
    run = place / "run"
    if not run.exists():
        fresh(place)
    (run / "journal.jsonl").write_bytes(content)
    attempt(texts(run) + arrays(run))


def journal_files() -> st.SearchStrategy[bytes]:
    """Journals that are consistent in themselves and say anything; damaged ones."""
    entries = [line.entry for line in good_lines()]
    whole = (good_run().path / "journal.jsonl").read_bytes()
    consistent = documents(entries).map(lambda v: chained(v if isinstance(v, list) else [v]))
    return consistent | contents(whole) | st.binary(max_size=64)


def run_content(place: Path, case: tuple[str, bytes]) -> None:
    """A file of the run with other content, and a journal that vouches for it."""
    name, content = case
    run = fresh(place)
    (run / name).write_bytes(content)
    entries = [dict(line.entry) for line in good_lines()]
    digest = sha256(content)
    if name in ("config.json", "environment.json", "facts.jsonl"):
        entries[0][name.split(".")[0]] = digest
    elif name == "summary.json":
        entries[-1]["summary"] = digest
    elif name == "metrics.jsonl":
        half = len(content) // 2
        entries[1] |= {"metrics": sha256(content[:half]), "metrics_end": half}
        entries[2] |= {"metrics": sha256(content[half:]), "metrics_end": len(content)}
    else:
        entries[1]["factors"] = digest
    (run / "journal.jsonl").write_bytes(chained(entries))
    attempt(arrays(run) if name.startswith("updates") else texts(run))


def hostile_tensors() -> st.SearchStrategy[bytes]:
    """Files of factors: other kinds of numbers, other shapes, other names, hostile headers."""
    names = [f"{path}/{side}" for path in good_run().truth[0] for side in ("left", "right")] + ["x", "../x"]
    sizes = st.sampled_from([0, 1, 2, 6, 12])
    kinds = st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.float16, np.bool_])
    arrays = st.tuples(st.lists(sizes, max_size=4), kinds, st.sampled_from([0.0, 1.0, np.nan, np.inf]))

    def fill(drawn: dict[str, Any]) -> bytes:
        with np.errstate(invalid="ignore"):
            return save(
                {name: np.full(shape, value).astype(kind) for name, (shape, kind, value) in drawn.items()}
            )

    good = (good_run().path / factors_name(0)).read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]

    def with_header(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + data

    return (
        st.dictionaries(st.sampled_from(names), arrays, max_size=5).map(fill)
        | documents(header).map(with_header)
        | contents(good)
    )


def run_contents() -> st.SearchStrategy[tuple[str, bytes]]:
    """Every file that the journal vouches for."""
    run = good_run().path

    def of(name: str) -> st.SearchStrategy[bytes]:
        content = (run / name).read_bytes()
        lines: Any = (
            [json.loads(line) for line in content.splitlines()]
            if name.endswith("jsonl")
            else json.loads(content)
        )
        if name == "environment.json":
            lines["branch"] = {
                "matrices": list(good_run().truth[0]),
                "fingerprint": "0" * 64,
                "run": "x",
                "step": 1,
            }
        if name.endswith("jsonl"):
            return documents(lines).map(
                lambda v: b"".join(
                    json.dumps(x).encode() + b"\n" for x in (v if isinstance(v, list) else [v])
                )
            ) | contents(content)
        return documents(lines).map(lambda v: json.dumps(v).encode()) | contents(content)

    names = ("config.json", "environment.json", "facts.jsonl", "metrics.jsonl", "summary.json")
    return st.one_of(
        *(st.tuples(st.just(name), of(name)) for name in names),
        st.tuples(st.just(factors_name(0)), hostile_tensors()),
    )


def run_snapshot(place: Path, case: tuple[str, str, bytes, bool]) -> None:
    """A file of a snapshot with other content, and a list of checksums that vouches for it or not."""
    part, name, content, listed = case
    run = fresh(place)
    folder = folder_of(run / "snapshots", 0 if part == "edited" else 2, part)
    before = sha256((folder / name).read_bytes())
    (folder / name).write_bytes(content)
    if listed and name != SUMS:
        sums = folder / SUMS
        sums.write_text(sums.read_text().replace(before, sha256(content)))
    good = good_run()
    if part == "edited":
        edited = good.steps(run).at(1)
        right = fingerprint(edited) == fingerprint(good.steps().at(1))
    else:
        state = RunFolder.open(run).state(good.state)
        right = fingerprint(state) == fingerprint(RunFolder.open(good.path).state(good.state))
    if not right:
        raise ValueError("a damaged snapshot was read as something else")


def snapshot_files() -> st.SearchStrategy[tuple[str, str, bytes, bool]]:
    """Files of a snapshot of the matrices and of one of the editor's state."""

    def of(part: str, chunks: int) -> list[st.SearchStrategy[Any]]:
        folder = folder_of(good_run().path / "snapshots", chunks, part)
        return [
            st.tuples(
                st.just(part), st.just(str(file.relative_to(folder))), _like(file.read_bytes()), st.booleans()
            )
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.stat().st_size
        ]

    return st.one_of(*of("edited", 0), *of("state", 2))


def _like(content: bytes) -> st.SearchStrategy[bytes]:
    try:
        value = json.loads(content)
    except ValueError:
        return contents(content)
    return documents(value).map(lambda v: json.dumps(v).encode()) | contents(content)


@functools.cache
def good_delta() -> tuple[bytes, dict[str, Any]]:
    """A file of a change, and its tensors."""
    change = jax.tree.map(np.asarray, good_run().steps().change(0, UPDATES))
    file = Path(mkdtemp(prefix="fuzz-delta-")) / "change.safetensors"
    write_delta(file, Delta("0" * 64, change))
    tensors = {f"{path}/{side}": getattr(d, side) for path, d in change.items() for side in ("left", "right")}
    return file.read_bytes(), tensors


def run_delta(place: Path, content: bytes) -> None:
    """A file of a change, applied."""
    (place / "change.safetensors").write_bytes(content)
    model = good_run().truth[0]
    for path, matrix in apply_delta(model, read_delta(place / "change.safetensors")).items():
        if matrix.shape != model[path].shape or matrix.dtype != np.float32:
            raise ValueError("a change made another matrix of it")


def delta_files() -> st.SearchStrategy[bytes]:
    """Changes whose fingerprint is right and whose tensors are anything; damaged files."""
    whole, tensors = good_delta()
    names = [
        *tensors,
        *(name.rpartition("/")[0] + "/dense" for name in tensors),
        "x/dense",
        "/left",
        "left",
        "",
    ]
    shapes = st.lists(st.sampled_from([0, 1, 4, 6, 12]), max_size=3)
    kinds = st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.bool_])

    def fill(drawn: tuple[dict[str, Any], Any]) -> bytes:
        made = {name: np.zeros(shape, kind) for name, (shape, kind) in drawn[0].items()}
        metadata = {"format": "jaxedit delta 1", "weights": "0" * 64, "tensors": fingerprint(made)}
        return save(made, {key: str(value) for key, value in (metadata | drawn[1]).items()})

    extra = st.dictionaries(
        st.sampled_from(["format", "weights", "tensors"]), st.text(max_size=5), max_size=1
    )
    drawn = st.tuples(st.dictionaries(st.sampled_from(names), st.tuples(shapes, kinds), max_size=4), extra)
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])

    def with_header(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    return drawn.map(fill) | documents(header).map(with_header) | contents(whole) | VALUES.map(with_header)


TARGETS = {
    "journals": Target(st.deferred(journal_files), run_journal, 10),
    "files that a journal vouches for": Target(st.deferred(run_contents), run_content, 5),
    "snapshots": Target(st.deferred(snapshot_files), run_snapshot, 3),
    "changes": Target(st.deferred(delta_files), run_delta, 7),
}
