"""The run folder: everything a sequence of edits leaves behind, in open formats.

    config.json        the resolved settings
    environment.json   versions, devices, seeds, contexts, fingerprint of the base weights
    facts.jsonl        the facts in the order in which they are edited
    metrics.jsonl      one line an update: norms, the editor's figures, scores right after it
    updates/           chunk-00000.safetensors, ...: the low-rank factors of every update, float32
    state/             orbax: edited matrices and editor state after the last finished chunk (and the one before)
    summary.json       written at the end: final scores beside the unedited model's
    figures/

A chunk counts once its state is saved; what a stop leaves half-written behind that is dropped on resume.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from jaxedit.errors import RunError
from jaxedit.trajectory.run import Step
from jaxedit.types import State

FORMAT = 1
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RunFolder:
    """One run on disk. Make it with `create` or `open`."""

    def __init__(self, path: Path):
        self.path = path
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=False)
        self._states = ocp.CheckpointManager((path / "state").absolute(), options=options)

    @classmethod
    def create(cls, path: str | Path, **documents: Any) -> "RunFolder":
        """A new run with its JSON documents (`config`, `environment`). Raises RunError if the folder exists."""
        path = Path(path)
        if path.exists():
            raise RunError(
                f"the run folder {path} exists already. Continue it with `jaxedit resume {path}`, "
                f"or choose another folder with --out."
            )
        with disk(path):
            for folder in ("updates", "figures", "state"):
                (path / folder).mkdir(parents=True)
            for name, content in documents.items():
                write_json(path / f"{name}.json", content)
            (path / "metrics.jsonl").touch()
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunError where there is none or its format is another one."""
        path = Path(path)
        if not (path / "environment.json").is_file() or not (path / "config.json").is_file():
            raise RunError(f"{path} is not a run folder: it has no config.json and environment.json")
        run = cls(path)
        if (found := run.read("environment").get("format")) != FORMAT:
            raise RunError(f"{path} has run format {found!r}, this version of jaxedit reads {FORMAT}")
        return run

    def read(self, name: str) -> dict[str, Any]:
        """One of the JSON documents. Raises RunError naming the file if it is missing or damaged."""
        file = self.path / f"{name}.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            raise RunError(
                f"{file} is missing: the run did not get that far, or the file was removed"
            ) from None
        except json.JSONDecodeError as error:
            raise RunError(
                f"{file} is damaged at line {error.lineno}, column {error.colno}: {error.msg}"
            ) from None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replaces one of the JSON documents in one step."""
        with disk(self.path):
            write_json(self.path / f"{name}.json", content)

    def require_base(self, model: str, fingerprint: str) -> None:
        """Raises RunError unless the run was made on the weights with this fingerprint."""
        written = self.read("environment")["fingerprint"]
        if written != fingerprint:
            raise RunError(
                f"{self.path} was made on other weights: the model {model!r} has fingerprint {fingerprint[:12]}, "
                f"the run {written[:12]}. Give back the original weights."
            )

    @property
    def finished_chunks(self) -> int:
        """How many chunks are saved with their state."""
        latest = self._states.latest_step()
        return 0 if latest is None else latest

    def append(self, chunk: int, steps: Step, lines: Iterable[dict[str, Any]]) -> None:
        """Adds chunk number `chunk` to the update log and the metrics; it counts only after `save`."""
        with disk(self.path):
            if steps.factors:
                save_factors(self.path / "updates" / f"chunk-{chunk:05d}.safetensors", steps)
            with (self.path / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps(line, allow_nan=True) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())

    def save(self, chunks: int, edited: dict[str, jax.Array], state: State) -> None:
        """Marks `chunks` chunks as finished by saving what is needed to go on from there."""
        content = {"edited": edited, "state": state} if jax.tree.leaves(state) else {"edited": edited}
        with disk(self.path):
            self._states.save(chunks, args=ocp.args.StandardSave(content))
            self._states.wait_until_finished()

    def restore(self, edited: dict[str, jax.Array], state: State) -> tuple[dict[str, jax.Array], State]:
        """Edited matrices and state after the last finished chunk; arguments give structure, shapes and types."""
        content = {"edited": edited, "state": state} if jax.tree.leaves(state) else {"edited": edited}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, content)
        with jax.enable_x64(True):  # keeps the float64 inverses of closed-form editors
            restored = self._states.restore(self.finished_chunks, args=ocp.args.StandardRestore(abstract))
        return restored["edited"], restored.get("state", state)

    def edited(self, like: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Edited matrices alone after the last finished chunk, without the state; `like` gives shapes and types."""
        content = {"edited": jax.tree.map(ocp.utils.to_shape_dtype_struct, like)}
        arguments = ocp.args.PyTreeRestore(
            content, restore_args=ocp.checkpoint_utils.construct_restore_args(content), partial_restore=True
        )
        return self._states.restore(self.finished_chunks, args=arguments)["edited"]

    def drop_unfinished(self, updates: int) -> None:
        """Removes metrics and factors beyond the finished part, `updates` updates long."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        with disk(self.path):
            replace(file, "".join(lines[:updates]).encode())
            for extra in sorted((self.path / "updates").glob("chunk-*.safetensors"))[self.finished_chunks :]:
                extra.unlink()

    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines. Raises RunError with the line number where one is damaged."""
        return list(read_jsonl(self.path / "metrics.jsonl"))


def save_factors(file: Path, steps: Step) -> None:
    """Factors of E updates as `{path}/left` [E, in, r] and `{path}/right` [E, r, out]."""
    tensors = {}
    for path, factors in steps.factors.items():
        tensors[f"{path}/left"] = np.ascontiguousarray(factors.left)
        tensors[f"{path}/right"] = np.ascontiguousarray(factors.right)
    temporary = file.with_suffix(".partial")
    save_file(tensors, temporary)
    os.replace(temporary, file)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON document in one step: the old one or the new one, never a part."""
    replace(file, (json.dumps(content, indent=2) + "\n").encode())


def replace(file: Path, content: bytes) -> None:
    """Puts `content` in place of `file` in one step."""
    temporary = file.with_suffix(file.suffix + ".partial")
    with temporary.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file. Raises RunError with file and line number where one is damaged."""
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise RunError(
                    f"{file}, line {number} is damaged: {error.msg}. Lines before it are good."
                ) from None


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns a full disk into a RunError that says what is safe."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and not any(
            word in str(error) for word in ("No space left", "File too large", "quota exceeded")
        ):
            raise
        raise RunError(
            f"no space is left for {path}: {error}. All chunks finished before are safe; free some space, "
            f"then `jaxedit resume {path}`."
        ) from error
