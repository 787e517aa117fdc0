"""Whole matrices and editor states at chosen steps, by orbax, with checksums; few are kept, however long a run."""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxedit.digests import fingerprint
from jaxedit.disk import moved, sync
from jaxedit.errors import RunError
from jaxedit.trajectory.files import check_sums, write_sums

LEAF = "leaf"
SNAPSHOTS = 16
"""Snapshots of the edited matrices that a run keeps, the first one apart."""


def spacing(chunks: int, limit: int) -> int:
    """Chunks between kept snapshots once there are `chunks`: the least power of two that keeps at most `limit`."""
    step = 1
    while chunks // step > limit:
        step *= 2
    return step


def kept(chunks: int, limit: int) -> set[int]:
    """Chunks after which a snapshot is kept, 0 for the one before the first: `limit` at most and that one."""
    return set(range(0, chunks + 1, spacing(chunks, limit)))


def retained(chunks: int, low_rank: bool, limit: int = SNAPSHOTS) -> dict[str, set[int]]:
    """After which chunks each part is kept. Dense updates are found again from whole states only."""
    edited = kept(chunks, limit)
    if low_rank:
        return {"edited": edited, "state": {0, chunks}}
    return {"edited": edited | {chunks}, "state": edited | {chunks}}


def folder_of(root: Path, chunks: int, part: str) -> Path:
    """Where a snapshot's part ("edited" or "state") after so many chunks lies."""
    return root / f"{chunks:06d}" / part


def save(folder: Path, tree: PyTree) -> None:
    """Writes a pytree of arrays; the folder appears complete, checksums included, or not at all.

    Once this returns it is on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sync(folder.parent.parent)
    partial = folder.with_name(folder.name + ".partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(partial.absolute(), _in_a_tree(tree))
        checkpointer.wait_until_finished()
    write_sums(partial)
    moved(partial, folder)


def restore(folder: Path, like: PyTree, expected: str) -> Any:
    """The pytree as it was saved; `like` gives structure, shapes and types, `expected` its fingerprint.

    Raises RunError naming the file that is missing or damaged. Nothing is allocated that `like` does not ask for.
    """
    if problems := check_sums(folder):
        raise RunError(f"{problems[0]}. Other snapshots may be good: `jaxedit verify` tells")
    abstract = _in_a_tree(jax.tree.map(_within_reach, like))
    try:
        with jax.enable_x64(True), _checkpointer() as checkpointer:  # keeps float64 inverses
            tree = checkpointer.restore(folder.absolute(), abstract)
    except Exception as error:  # orbax and tensorstore raise a dozen kinds, by what was altered
        raise RunError(f"{folder} does not hold what this run needs: {error}") from None
    tree = tree[LEAF] if _is_leaf(like) else tree
    if fingerprint(tree) != expected:
        raise RunError(f"{folder} holds other numbers than the journal says: it was altered")
    return tree


def _in_a_tree(tree: PyTree) -> PyTree:
    """Orbax takes no array by itself, which an editor's state may be."""
    return {LEAF: tree} if _is_leaf(tree) else tree


def _is_leaf(tree: PyTree) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))


def _within_reach(leaf: Any) -> Any:
    """Shape, type and place of an array; the first device where it is spread over those of other processes."""
    found = ocp.utils.to_shape_dtype_struct(leaf)
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return found
    return jax.ShapeDtypeStruct(
        found.shape, found.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )


def _checkpointer() -> ocp.StandardCheckpointer:
    """Of this process, which waits for no other: the first one saves, and all restore."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def prune(root: Path, keep: dict[str, set[int]]) -> None:
    """Removes all snapshots but those after the chunks named for each part, and what stops left half-written."""
    wanted = {folder_of(root, chunks, part) for part, numbers in keep.items() for chunks in numbers}
    for number in root.iterdir():
        for part in number.iterdir():
            if part not in wanted:
                shutil.rmtree(part)
        if not any(number.iterdir()):
            number.rmdir()
