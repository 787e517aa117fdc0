"""Folders that appear complete or not at all, and hashes of big files kept beside them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxedit.disk import moved
from jaxedit.errors import ModelError

HASHES = ".jaxedit-hashes.json"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A draft folder beside `target` that becomes `target` when the block ends without an error.

    Raises ModelError where `target` exists and is not an empty folder, before or after the block.
    """
    _refuse_used(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        _refuse_used(target)
        if target.is_dir():
            target.rmdir()
        moved(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_used(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ModelError(f"{target} exists and is not an empty folder; choose another or remove it")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; recomputed when its size or time of change differs from last time."""
    stat, ledger = path.stat(), path.parent / HASHES
    stamp = (stat.st_size, stat.st_mtime_ns)
    known = _known_hashes(ledger)
    if path.name in known and known[path.name][:2] == stamp:
        return known[path.name][2]
    digest = sha256(path)
    with suppress(OSError):  # a folder that may not be written to is hashed anew every time
        draft = ledger.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(known | {path.name: [*stamp, digest]}), encoding="utf-8")
        draft.replace(ledger)
    return digest


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_hashes(ledger: Path) -> dict[str, tuple[int, int, str]]:
    try:
        known = json.loads(ledger.read_text(encoding="utf-8"))
        return {
            str(name): (int(size), int(time), str(digest)) for name, (size, time, digest) in known.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
