"""From a run folder to the edited model as a folder that Hugging Face's transformers loads."""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import DTypeLike

from jaxedit.errors import RunError
from jaxedit.models.sources import load
from jaxedit.models.weights import save_folder
from jaxedit.trajectory.store import RunFolder


def export(run: str | Path, out: str | Path, dtype: DTypeLike = jnp.float32) -> Path:
    """Writes the model as the run left it: base weights, edited matrices, configuration and tokenizer.

    `dtype` is that of the stored weights; in fewer bits than float32 small edits may be rounded away.

    Raises RunError where `out` exists, the run has no finished chunk, or its base weights have changed;
    ModelError where the base model cannot be read.
    """
    out = Path(out)
    if out.exists():
        raise RunError(f"{out} exists already: choose another folder for the exported model")
    folder = RunFolder.open(run)
    if not folder.finished_chunks:
        raise RunError(f"{run} has no finished edits to export: `jaxedit resume {run}` goes on with it")
    base = load(str(folder.read("config")["model"]), dtype=jnp.float32)
    folder.require_base(base.name, base.fingerprint)
    paths = base.model.edited_paths(folder.read("environment")["editor"]["layers"]).values()
    edited = folder.edited(base.model.split(base.params, paths).edited)
    config, weights = base.model.config, base.params | edited
    return save_folder(out, weights, config, base.hf_config, source=base.folder, dtype=dtype)
