"""Where an unfinished training lies: its identity, and its last two states."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxedit.errors import RunError

T = TypeVar("T")


class Checkpoints:
    """A folder with `training.json` and orbax checkpoints by step."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        """Opens or creates it. Raises RunError where it belongs to a training with another identity."""
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._identify(json.loads(json.dumps(identity)))
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(self.folder / "steps", options=options)

    def _identify(self, identity: dict[str, Any]) -> None:
        file = self.folder / "training.json"
        if not file.exists():
            temporary = file.with_suffix(".partial")
            temporary.write_text(json.dumps(identity, indent=2) + "\n")
            os.replace(temporary, file)
            return
        try:
            found = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise RunError(f"{file} is damaged ({error}): remove the folder and train anew") from None
        if different := sorted(name for name in identity if found.get(name) != identity[name]):
            raise RunError(
                f"{self.folder} holds another training: its {', '.join(different)} differ. Choose another folder, "
                f"or give back what it was begun with."
            )

    @property
    def latest(self) -> int | None:
        """The last step saved; None where nothing was."""
        return self._manager.latest_step()

    def save(self, step: int, progress: Any) -> None:
        """Returns when the state is on the disk."""
        self._manager.save(step, args=ocp.args.StandardSave(_flat(progress)))
        self._manager.wait_until_finished()

    def restore(self, like: T) -> T:
        """The last state saved; the argument gives structure, shapes and types."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flat(like))
        found = self._manager.restore(self.latest, args=ocp.args.StandardRestore(abstract))
        # Through numpy: not bound to a device, as when training began, so that nothing compiles a second time.
        leaves = [jnp.asarray(np.asarray(found[name])) for name in _flat(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
