"""Writing so that a stop or a loss of power at any moment leaves the old content or the new."""

import os
from pathlib import Path


def replace(file: Path, content: bytes) -> None:
    """Puts `content` in place of `file` in one step, and waits until it is on the disk."""
    temporary = file.with_suffix(file.suffix + ".partial")
    temporary.write_bytes(content)
    moved(temporary, file)


def append(file: Path, content: bytes) -> None:
    """Adds `content` at the end, and waits until it is on the disk."""
    with file.open("ab") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def moved(draft: Path, target: Path) -> None:
    """Puts a file, or a folder with all below it, in the place of `target`; waits until it is on the disk.

    What is at `target` must be a file, where `draft` is one, or an empty folder, or nothing.
    """
    for folder, _, names in os.walk(draft, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if draft.is_file():
        sync(draft)
    os.replace(draft, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
