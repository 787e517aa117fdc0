"""From a run folder to the edited model as a folder that Hugging Face's transformers loads."""

from collections.abc import Collection
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import DTypeLike

from jaxedit.errors import RunError
from jaxedit.models.sources import Checkpoint
from jaxedit.models.weights import save_folder
from jaxedit.pipeline import model_at


def export(
    run: str | Path,
    out: str | Path,
    dtype: DTypeLike = jnp.float32,
    step: int | None = None,
    without: Collection[int] = (),
) -> Path:
    """Writes the model after a step of a run, by default the last: weights, configuration and tokenizer.

    `dtype` is that of the stored weights; in fewer bits than float32 small edits may be rounded away. `without`
    are updates to leave out (`Trajectory.without`).

    Raises RunError where `out` exists, the run has no such step, or its base weights have changed;
    ModelError where the base model cannot be read.
    """
    refuse_existing_model(out)
    return write_model(model_at(run, step, without), out, dtype)


def write_model(model: Checkpoint, out: str | Path, dtype: DTypeLike = jnp.float32) -> Path:
    """Writes a model with its tokenizer as a Hugging Face folder."""
    refuse_existing_model(out)
    config = model.model.config
    return save_folder(Path(out), model.params, config, model.hf_config, source=model.folder, dtype=dtype)


def refuse_existing_model(out: str | Path) -> None:
    """Raises RunError where something is at `out`."""
    if Path(out).exists():
        raise RunError(f"{out} exists already: choose another folder for the exported model")
