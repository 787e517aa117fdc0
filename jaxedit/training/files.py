"""Trained networks on disk: one safetensors file, with what it was trained for in the metadata."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxedit.configs import build
from jaxedit.disk import moved
from jaxedit.editors.hypernet import HyperConfig, Hypernet, fresh
from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.models.model import Model


class NetFile(NamedTuple):
    """A network and the settings it was trained for."""

    hypernet: Hypernet
    config: HyperConfig


def save_net(file: str | Path, net: NetFile, fingerprint: str, **provenance: Any) -> None:
    """Writes the network in one step. `fingerprint` is that of the base weights; the rest of `provenance` is JSON."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = provenance | {"weights": fingerprint, "config": dataclasses.asdict(net.config)}
    temporary = file.with_suffix(f".{os.getpid()}.partial")
    tensors = {name: np.array(leaf) for name, leaf in _named(net.hypernet).items()}
    save_file(tensors, temporary, metadata={"provenance": json.dumps(content)})
    moved(temporary, file)


def learned_ids(file: str | Path, facts: str) -> frozenset[str]:
    """Ids of the facts of this set that the network was trained on or chosen by, where the file tells."""
    with _opened(file) as tensors:
        provenance = _provenance(tensors)
    same = "facts" in provenance and _place(provenance["facts"]) == _place(facts)
    return frozenset(provenance.get("ids", ())) if same else frozenset()


def _place(facts: str) -> str | Path:
    """A set of facts by its name, a file by where it lies: it has several names."""
    path = Path(facts)
    return path.resolve() if path.exists() else facts


def load_net(file: str | Path, model: Model, fingerprint: str) -> NetFile:
    """Reads a network for the model with this fingerprint of its weights.

    Raises StatisticsError where the file cannot be read, was trained on other weights, or has numbers that are not
    finite.
    """
    with _opened(file) as tensors:
        provenance = _provenance(tensors)
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    weights, config = provenance["weights"], provenance["config"]
    if weights != fingerprint:
        raise StatisticsError(
            f"{file} was trained on the weights {weights[:12]}, the model has {fingerprint[:12]}: it belongs to "
            f"another model. Train a network for this one."
        )
    abstract = jax.eval_shape(lambda: fresh(model, config, jax.random.key(0)))
    wanted = _named(abstract)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found or found[name].shape != wanted[name].shape:
            raise StatisticsError(f"{file}: {name} is missing, unknown or of the wrong shape; train it again")
        if not np.isfinite(found[name]).all():
            raise StatisticsError(f"{file}: {name} is not finite; train it again with a lower learning rate")
    leaves = [jnp.asarray(found[name]) for name in wanted]
    return NetFile(jax.tree.unflatten(jax.tree.structure(abstract), leaves), config)


@contextmanager
def _opened(file: str | Path) -> Iterator[Any]:
    """The open file. What fails while it is read becomes a StatisticsError that names it."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise StatisticsError(
            f"{file} cannot be read as a trained network ({error}); train it again"
        ) from None


def _provenance(tensors: Any) -> dict[str, Any]:
    """What the metadata of an open file say of the network, its settings built."""
    content = json.loads(tensors.metadata()["provenance"])
    return content | {"weights": content["weights"], "config": build(HyperConfig, content["config"])}


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
