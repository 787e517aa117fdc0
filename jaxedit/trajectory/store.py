"""The run folder: everything a sequence of edits leaves behind, in open formats (docs/run-format.md).

    journal.jsonl      what is finished, with checksums of everything below; written last
    config.json        the resolved settings
    environment.json   versions, devices, seeds, contexts, fingerprint of the base weights
    facts.jsonl        the facts in the order in which they are edited
    metrics.jsonl      one line an update: norms, the editor's figures, scores right after it
    updates/           000000.safetensors, ...: the low-rank factors of a chunk's updates, float32
    snapshots/         orbax: the edited matrices at a few steps, the editor's state after the last ones
    origin/            orbax: matrices that differed from the base weights when the run began; in branches only
    summary.json       written at the end: final scores beside the unedited model's
    figures/

A chunk counts once its line is in the journal.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from jaxedit.digests import sha256
from jaxedit.errors import RunError
from jaxedit.trajectory import journal as journals
from jaxedit.trajectory import snapshots
from jaxedit.trajectory.files import check_sums, sensible
from jaxedit.trajectory.journal import Finished, Journal, Start, line_of
from jaxedit.types import LowRank, State

FORMAT = 2
DOCUMENTS = ("config", "environment")


class RunFolder:
    """One run on disk, as far as its journal acknowledges it. Reading changes nothing."""

    def __init__(self, path: Path, journal: Journal):
        self.path, self.journal = path, journal

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunError where there is none, it is damaged, or its format is another one."""
        path = Path(path)
        if not (path / "journal.jsonl").is_file():
            raise RunError(_no_run(path))
        return cls(path, journals.read(path / "journal.jsonl", FORMAT))

    @property
    def updates(self) -> int:
        """How many updates are finished."""
        return self.journal.updates

    @property
    def identity(self) -> str:
        """SHA-256 of the journal's first line: of all that the run is made of, wherever it lies."""
        return line_of(self.journal.start, "")[1]

    def require_step(self, step: int) -> None:
        """Raises RunError unless the run has a model after so many updates."""
        if not 0 <= step <= self.updates:
            raise RunError(f"{self.path} has steps 0 to {self.updates}, there is no step {step}")

    @property
    def finished(self) -> bool:
        """Whether all updates are done and scored."""
        return self.journal.end is not None

    @property
    def low_rank(self) -> bool:
        """Whether all updates are kept as factors; else they count as dense, and are found again by running them."""
        return self.journal.dense_from is None

    def read(self, name: str) -> dict[str, Any]:
        """One of the JSON documents. Raises RunError naming the file if it is missing or altered."""
        if name == "summary":
            if self.journal.end is None:
                raise RunError(f"{self.path / 'summary.json'} is missing: the run did not come to its end")
            expected = self.journal.end.summary
        else:
            expected = getattr(self.journal.start, name)
        content = self._bytes(f"{name}.json", expected)
        with sensible(self.path / f"{name}.json"):
            return dict(json.loads(content))

    def _bytes(self, name: str, expected: str) -> bytes:
        file = self.path / name
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise RunError(f"{file} is missing: it was removed") from None
        if sha256(content) != expected:
            raise RunError(
                f"{file} was altered since the run wrote it. A run keeps its settings: put the file back, or "
                f"start another run; `jaxedit verify {self.path}` tells what is still good."
            )
        return content

    def facts_file(self) -> Path:
        """The facts in their order. Raises RunError if the file was altered."""
        self._bytes("facts.jsonl", self.journal.start.facts)
        return self.path / "facts.jsonl"

    def require_base(self, model: str, weights: str) -> None:
        """Raises RunError unless the run was made on the weights with this fingerprint."""
        with sensible(self.path / "environment.json"):
            written = str(self.read("environment")["fingerprint"])
        if written != weights:
            raise RunError(
                f"{self.path} was made on other weights: the model {model!r} has fingerprint {weights[:12]}, "
                f"the run {written[:12]}. Give back the original weights."
            )

    def metrics(self, behind: int = 0) -> list[dict[str, Any]]:
        """The metric lines of all finished updates, those of the first `behind` chunks left out.

        Raises RunError naming the first chunk that is damaged.
        """
        lines: list[dict[str, Any]] = []
        chunks = self.journal.chunks
        start = chunks[behind - 1].metrics_end if behind else 0
        for chunk in chunks[behind:]:
            content = self._metric_bytes(chunk, start)
            with sensible(self.path / "metrics.jsonl"):
                lines += [dict(json.loads(line)) for line in content.splitlines()]
            start = chunk.metrics_end
        return lines

    def _metric_bytes(self, chunk: Finished, start: int) -> bytes:
        """The lines of a chunk in metrics.jsonl, which begin there."""
        file = self.path / "metrics.jsonl"
        try:
            with file.open("rb") as lines:
                lines.seek(start)
                content = lines.read(min(chunk.metrics_end - start, os.path.getsize(file)))
        except FileNotFoundError:
            raise RunError(f"{file} is missing: it was removed") from None
        if sha256(content) != chunk.metrics:
            raise RunError(
                f"{file} is damaged in the lines of updates {chunk.first} to {chunk.after - 1}, bytes {start} "
                f"to {chunk.metrics_end}. The lines before are good, and so are the updates themselves."
            )
        return content

    def factors(self, chunk: Finished, like: Mapping[str, Array]) -> dict[str, LowRank]:
        """Factors of a chunk's updates, leading axis `chunk.updates`.

        `like` are the edited matrices; raises RunError where the file is missing, altered, or of other shapes.
        """
        name = factors_name(chunk.number)
        content = self._bytes_of_updates(name, chunk)
        try:
            tensors = load_tensors(content)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}") from None
        found = {}
        for path, matrix in like.items():
            left, right = tensors.pop(f"{path}/left", None), tensors.pop(f"{path}/right", None)
            rank = left.shape[-1] if left is not None and left.ndim == 3 else 0
            shapes = (chunk.updates, matrix.shape[0], rank), (chunk.updates, rank, matrix.shape[1])
            if (
                left is None
                or right is None
                or (left.shape, right.shape) != shapes
                or {left.dtype, right.dtype} != {np.dtype(np.float32)}
            ):
                raise RunError(f"{self.path / name} has no float32 factors of shape {shapes} for {path}")
            found[path] = LowRank(jnp.asarray(left), jnp.asarray(right))
        if tensors:
            raise RunError(
                f"{self.path / name} has factors of matrices that the run does not edit: {[*tensors]}"
            )
        return found

    def _bytes_of_updates(self, name: str, chunk: Finished) -> bytes:
        try:
            return self._bytes(name, chunk.factors)
        except RunError as error:
            raise RunError(
                f"updates {chunk.first} to {chunk.after - 1} are lost: {error} Steps up to {chunk.first}, and those "
                f"from the next snapshot on, can still be read."
            ) from None

    def fingerprint(self, chunks: int, part: str = "edited") -> str:
        """What the journal says of the matrices, or of the editor's state, after so many chunks."""
        entry: Start | Finished = self.journal.chunks[chunks - 1] if chunks else self.journal.start
        return getattr(entry, part)

    def snapshots(self, part: str = "edited") -> list[int]:
        """After how many chunks there are snapshots, ascending."""
        last = len(self.journal.chunks)
        found = [n for n in range(last + 1) if snapshots.folder_of(self._snapshots, n, part).is_dir()]
        return found

    def restore(self, chunks: int, part: str, like: Any) -> Any:
        """The snapshot after so many chunks; `like` gives structure, shapes and types."""
        folder = snapshots.folder_of(self._snapshots, chunks, part)
        return snapshots.restore(folder, like, self.fingerprint(chunks, part))

    def state(self, like: State) -> State:
        """The editor's state after the last finished chunk; `like` itself where it remembers nothing."""
        last = len(self.journal.chunks)
        return self.restore(last, "state", like) if self.fingerprint(last, "state") else like

    def origin(self, like: Mapping[str, Array]) -> dict[str, Array]:
        """Matrices in which the run's first model differed from the base weights; none but in a branch."""
        branch = self.read("environment").get("branch")
        if branch is None:
            return {}
        with sensible(self.path / "environment.json"):
            expected = str(branch["fingerprint"])
            shapes = {
                path: jax.ShapeDtypeStruct(like[path].shape, jnp.float32) for path in branch["matrices"]
            }
        return snapshots.restore(self.path / "origin", shapes, expected)

    @property
    def _snapshots(self) -> Path:
        return self.path / "snapshots"

    def damages(self) -> list[str]:
        """Everything in this folder that is not as the run left it; reads every file once."""
        problems = []
        for name, digest in vars(self.journal.start).items():
            if name in DOCUMENTS or name == "facts":
                file = f"{name}.jsonl" if name == "facts" else f"{name}.json"
                problems += _problem(lambda: self._bytes(file, digest))  # noqa: B023
        start = 0
        for chunk in self.journal.chunks:
            problems += _problem(lambda: self._metric_bytes(chunk, start))  # noqa: B023
            start = chunk.metrics_end
            if chunk.factors:
                name = factors_name(chunk.number)
                problems += _problem(lambda: self._bytes_of_updates(name, chunk))  # noqa: B023
        if self.journal.end is not None:
            problems += _problem(lambda: self.read("summary"))
        for part in ("edited", "state"):
            problems += [
                line
                for number in self.snapshots(part)
                for line in check_sums(snapshots.folder_of(self._snapshots, number, part))
            ]
        for folder in (self.path / "origin", self.path / "figures"):
            problems += check_sums(folder) if folder.is_dir() and any(folder.iterdir()) else []
        return problems + self._strangers()

    def _strangers(self) -> list[str]:
        """Files beyond what the journal acknowledges, and snapshots it asks for that are not there."""
        problems = []
        metrics = self.path / "metrics.jsonl"
        end = self.journal.chunks[-1].metrics_end if self.journal.chunks else 0
        if metrics.is_file() and metrics.stat().st_size > end:
            problems.append(
                f"{metrics} has {metrics.stat().st_size - end} bytes that the journal does not know"
            )
        if self.journal.unfinished:
            problems.append(f"{self.path / 'journal.jsonl'}: its last line is not finished")
        if self.journal.end is None and (self.path / "summary.json").exists():
            problems.append(
                f"{self.path / 'journal.jsonl'} does not reach the end, but summary.json is there"
            )
        names = {factors_name(chunk.number) for chunk in self.journal.chunks if chunk.factors}
        updates = self.path / "updates"
        files = {f"updates/{file.name}" for file in updates.iterdir()} if updates.is_dir() else set[str]()
        problems += [f"{self.path / name} is not in the journal" for name in sorted(files - names)]
        for part, numbers in snapshots.retained(len(self.journal.chunks), self.low_rank).items():
            begun = 0 if part == "edited" else self.journal.dense_from or 0
            # Before the first dense chunk only the first state and the last were kept.
            asked = {n for n in numbers if self.fingerprint(n, part) and (n == 0 or n >= begun)}
            problems += [
                f"{snapshots.folder_of(self._snapshots, number, part)} is missing"
                for number in sorted(asked - set(self.snapshots(part)))
            ]
        return problems


def factors_name(chunk: int) -> str:
    """File of a chunk's factors within the run folder."""
    return f"updates/{chunk:06d}.safetensors"


def factor_tensors(factors: Mapping[str, LowRank]) -> dict[str, np.ndarray]:
    """`{path}/left` [E, in, r] and `{path}/right` [E, r, out]."""
    return {
        f"{path}/{side}": np.ascontiguousarray(getattr(delta, side))
        for path, delta in factors.items()
        for side in LowRank._fields
    }


def _problem(read: Any) -> list[str]:
    try:
        read()
    except RunError as error:
        return [str(error)]
    return []


def _no_run(path: Path) -> str:
    if (path / "environment.json").is_file():
        return (
            f"{path} has no journal.jsonl: it was written in run format 1, or its journal was removed. "
            f"This version of jaxedit reads format {FORMAT}; edit anew."
        )
    return f"{path} is not a run folder: it has no journal.jsonl"
