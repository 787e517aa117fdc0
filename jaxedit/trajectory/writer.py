"""Writing a run folder: one writer at a time, in the background, nothing acknowledged before it is on the disk."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save as save_tensors

from jaxedit.configs import require_plain_path
from jaxedit.digests import fingerprint, sha256
from jaxedit.disk import append, moved, replace
from jaxedit.errors import RunError
from jaxedit.trajectory import journal as journals
from jaxedit.trajectory import snapshots
from jaxedit.trajectory.files import json_bytes, room
from jaxedit.trajectory.guard import Policy
from jaxedit.trajectory.journal import End, Finished, Journal, PolicyChange, Start
from jaxedit.trajectory.run import Step
from jaxedit.trajectory.store import DOCUMENTS, FORMAT, RunFolder, factor_tensors, factors_name
from jaxedit.types import State


class Done(NamedTuple):
    """A chunk as the driver leaves it; arrays may still be on their way from the device."""

    updates: int
    shape: tuple[int, ...]
    steps: Step  # leaves lead with at least `updates`
    lines: Iterable[str]  # for metrics.jsonl, read in the background
    edited: dict[str, Array]
    state: State | None  # None where the editor remembers nothing


def create(
    path: str | Path,
    documents: Mapping[str, dict[str, Any]],
    facts: str,
    edited: Mapping[str, Array],
    state: State | None,
    origin: Mapping[str, Array] | None = None,
) -> RunFolder:
    """A new run folder; it appears complete or not at all. Raises RunError where `path` exists.

    `documents` are `config` and `environment`, `facts` the text of facts.jsonl, `origin` the matrices of a
    branch that differ from the base weights.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with room(path, "Free some space, then begin the run again."):
            _fill(partial, documents, facts, edited, state, origin)
            partial.chmod(0o755)
            try:
                moved(partial, path)
            except OSError:
                refuse_existing(path)
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return RunFolder.open(path)


def _fill(partial, documents, facts, edited, state, origin) -> None:
    for folder in ("updates", "figures", "snapshots"):
        (partial / folder).mkdir()
    content = {name: json_bytes(documents[name]) for name in DOCUMENTS}
    for name, text in content.items():
        replace(partial / f"{name}.json", text)
    replace(partial / "facts.jsonl", facts.encode())
    replace(partial / "metrics.jsonl", b"")
    parts = {"edited": dict(edited)} | ({} if state is None else {"state": state})
    for part, tree in parts.items():
        snapshots.save(snapshots.folder_of(partial / "snapshots", 0, part), tree)
    if origin:
        snapshots.save(partial / "origin", dict(origin))
    prints = {part: fingerprint(tree) for part, tree in parts.items()}
    digests = {name: sha256(text) for name, text in content.items()}
    journals.create(
        partial / "journal.jsonl", Start(FORMAT, **digests, facts=sha256(facts.encode()), **prints)
    )


def refuse_existing(path: Path) -> None:
    """Raises RunError where something is at `path`, ConfigError where no run can be."""
    require_plain_path(path)
    if path.exists():
        raise RunError(
            f"the run folder {path} exists already. Continue it with `jaxedit resume {path}`, "
            f"or choose another folder with --out."
        )


class RunWriter:
    """The one writer of a run, as a context manager; what an earlier writer left unfinished is dropped first."""

    def __init__(self, folder: RunFolder):
        self.path = folder.path
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="run-writer")
        self._pending: Future[None] | None = None
        self._file = self.path / "journal.jsonl"

    def __enter__(self) -> "RunWriter":
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunError(
                f"{self.path} is being written by another process. Wait until it ends, or stop it: "
                f"two writers would spoil the run."
            ) from None
        try:
            self.journal: Journal = journals.read(self._file, FORMAT)
            with self._room():
                self._drop_unfinished()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)
            self._lock.release()

    def append(self, done: Done) -> None:
        """Starts writing a chunk, once the one before is on the disk. Raises what went wrong with that one."""
        self.wait()
        journals.require_open(self._file, self.journal)
        self._pending = self._pool.submit(self._write, done)

    def wait(self) -> None:
        """Returns when everything that was appended is acknowledged. Raises RunError for a full disk."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def change_policy(self, policy: Policy) -> None:
        """Notes that refused updates are treated in another way from here on."""
        self.wait()
        with self._room():
            self.journal = journals.write(self._file, self.journal, PolicyChange(policy))

    def end(self, summary: dict[str, Any]) -> None:
        """Writes the summary and ends the journal. Raises RunError where it has ended."""
        self.wait()
        journals.require_open(self._file, self.journal)
        content = json_bytes(summary)
        with self._room():
            replace(self.path / "summary.json", content)
            self.journal = journals.write(self._file, self.journal, End(sha256(content)))

    def _write(self, done: Done) -> None:
        with self._room():
            number, first = len(self.journal.chunks), self.journal.updates
            steps = jax.tree.map(lambda x: np.asarray(x)[: done.updates], done.steps)
            metrics = "".join(done.lines).encode()
            append(self.path / "metrics.jsonl", metrics)
            whole = steps.factors.keys() == done.edited.keys()  # else some matrices change densely
            factors = save_tensors(factor_tensors(steps.factors)) if whole else b""
            if factors:
                replace(self.path / factors_name(number), factors)
            edited = jax.tree.map(np.asarray, done.edited)
            entry = Finished(
                number=number,
                first=first,
                updates=done.updates,
                shape=done.shape,
                factors=sha256(factors) if factors else "",
                metrics=sha256(metrics),
                metrics_end=self._metrics_end + len(metrics),
                edited=fingerprint(edited),
                state="" if done.state is None else fingerprint(done.state),
                refused=tuple(first + int(i) for i in np.flatnonzero(~steps.applied)),
            )
            low_rank = bool(factors) and self.journal.dense_from is None
            keep = snapshots.retained(number + 1, low_rank)
            if number + 1 in keep["edited"]:
                snapshots.save(self._folder(number + 1, "edited"), edited)
            if done.state is not None:
                snapshots.save(self._folder(number + 1, "state"), done.state)
            self.journal = journals.write(self._file, self.journal, entry)
            snapshots.prune(self.path / "snapshots", keep)

    def _room(self) -> AbstractContextManager[None]:
        safe = "All chunks finished before are safe; free some space"
        return room(self.path, f"{safe}, then `jaxedit resume {self.path}`.")

    @property
    def _metrics_end(self) -> int:
        return self.journal.chunks[-1].metrics_end if self.journal.chunks else 0

    def _folder(self, chunks: int, part: str) -> Path:
        return snapshots.folder_of(self.path / "snapshots", chunks, part)

    def _drop_unfinished(self) -> None:
        """Removes what no line of the journal acknowledges: at most one chunk, else nothing."""
        self._refuse_cut()
        if self.journal.unfinished:
            os.truncate(self._file, self.journal.size)
            self.journal = self.journal._replace(unfinished=0)
        metrics = self.path / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if size < self._metrics_end:
            raise RunError(
                f"{metrics} has {size} bytes, the journal knows {self._metrics_end}: it was cut. The updates "
                f"are still good: `jaxedit branch {self.path} {self.journal.updates} OUT` goes on elsewhere."
            )
        os.truncate(metrics, self._metrics_end)
        known = {factors_name(chunk.number) for chunk in self.journal.chunks}
        for file in self._updates():
            if f"updates/{file.name}" not in known:
                file.unlink()
        keep = snapshots.retained(len(self.journal.chunks), self.journal.dense_from is None)
        snapshots.prune(self.path / "snapshots", keep)
        if self.journal.end is None:
            (self.path / "summary.json").unlink(missing_ok=True)

    def _refuse_cut(self) -> None:
        """Raises RunError where the journal is behind the files by more than what a stop leaves."""
        chunks, root = len(self.journal.chunks), self.path / "snapshots"
        factors = [int(name) + 1 for file in self._updates() if (name := file.name.split(".")[0]).isdigit()]
        states = [int(folder.name) for folder in root.iterdir() if folder.name.isdigit()]
        entry: Start | Finished = self.journal.chunks[-1] if chunks else self.journal.start
        lost = entry.state and not snapshots.folder_of(root, chunks, "state").is_dir()
        if max([*factors, *states], default=0) > chunks + 1 or (lost and max(states, default=0) > chunks):
            raise RunError(
                f"{self.path} has files of chunks that its journal, with {chunks}, does not tell of: lines were "
                f"cut. Nothing was removed. Put the whole journal back, or go on elsewhere from what it tells: "
                f"`jaxedit branch {self.path} {self.journal.updates} OUT`."
            )

    def _updates(self) -> list[Path]:
        """The files of factors; the folder is made anew where a copy of a run left it out, being empty."""
        (self.path / "updates").mkdir(exist_ok=True)
        return [*(self.path / "updates").iterdir()]
