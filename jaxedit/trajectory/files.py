"""Documents and checksums of a run's files, and what is said of those that are damaged or find no room."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxedit.digests import sha256
from jaxedit.disk import replace
from jaxedit.errors import RunError

SUMS = "SHA256SUMS"
"""Name of a list of checksums, in the format of `sha256sum --check`."""
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def json_bytes(content: dict[str, Any]) -> bytes:
    """A document for people to read; paths are written as text."""
    return (json.dumps(content, indent=2, default=_path_text) + "\n").encode()


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a document")


def write_sums(folder: Path) -> None:
    """Lists the checksums of all files below a folder in the folder itself."""
    digests = {str(file.relative_to(folder)): sha256(file.read_bytes()) for file in _files(folder)}
    replace(folder / SUMS, _listed(digests))


def check_sums(folder: Path) -> list[str]:
    """What is wrong with the files below a folder that has such a list; empty where nothing is."""
    try:
        content = (folder / SUMS).read_bytes()
        lines = content.decode().split("\n")[:-1]
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        return [f"{folder / SUMS} is missing"]
    except ValueError:
        return [f"{folder / SUMS} is damaged: it is no list of checksums"]
    if content != _listed(expected):
        return [f"{folder / SUMS} is damaged: it is not as it was written"]
    found = {str(file.relative_to(folder)): file for file in _files(folder)}
    problems = [f"{folder / name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{folder / name} is not in {SUMS}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        if sha256(found[name].read_bytes()) != expected[name]:
            problems.append(f"{folder / name} is damaged: its checksum is not that in {SUMS}")
    return problems


def _listed(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / SUMS)


@contextlib.contextmanager
def sensible(what: Path | str) -> Iterator[None]:
    """Turns content that is whole but nothing that a run writes into a RunError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise RunError(
            f"{what} does not hold what a run writes there ({type(error).__name__}: {error})"
        ) from None


@contextlib.contextmanager
def room(path: Path, then: str) -> Iterator[None]:
    """Turns a full disk into a RunError that says what was to be written, and what to do: `then`."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and not any(
            word in str(error) for word in ("No space left", "File too large", "quota exceeded")
        ):
            raise
        raise RunError(f"no space is left for {path}: {error}. {then}") from error
