"""A run's ingredients: the model, the facts in their order, contexts, second moments, the editor."""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxedit.data.contexts import sample_contexts
from jaxedit.data.facts import Fact
from jaxedit.data.probes import encode_probes, probe_shape
from jaxedit.data.sources import load_facts
from jaxedit.editors import Settings, method
from jaxedit.editors.hypernet import HyperConfig, Hypernet
from jaxedit.editors.presets import preset_for
from jaxedit.editors.transforms import build_transforms, chain, read_transform
from jaxedit.errors import ConfigError, FactError
from jaxedit.evaluation.edits import answers_together
from jaxedit.evaluation.generation import sample
from jaxedit.memory import Cut
from jaxedit.models.columns import columns_of
from jaxedit.models.sources import Checkpoint, load
from jaxedit.moments import load_moments
from jaxedit.parallel import Devices, devices_for, placed_parameters, replicated
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.fit import cut_of
from jaxedit.processes import to_host
from jaxedit.training.files import learned_ids, load_net
from jaxedit.types import Editor, Params

Report = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


PURPOSES = ("contexts", "corpus", "order")
"""What a run draws random numbers for, each from a key of its own."""


class Prepared(NamedTuple):
    """A run's ingredients, before its first update."""

    checkpoint: Checkpoint
    facts: list[Fact]
    contexts: tuple[str, ...]
    moments: dict[int, Float[Array, "d_k d_k"]]  # empty for editors without
    editor: Editor
    settings: Any  # of the editor, resolved
    params: Params
    devices: Devices
    cut: Cut
    columns: dict[str, Array]  # transposed copies of frozen matrices; empty where they gain nothing

    @property
    def frozen(self) -> dict[str, Array]:
        """What updates read and do not write."""
        return self.params.frozen | self.columns


def quiet(stage: str, done: int, total: int) -> None:
    """A report that says nothing."""


def load_model(config: RunConfig) -> Checkpoint:
    """The base weights, on the devices that the run is made on."""
    devices = devices_for(config.devices.way, config.devices.tensor)
    return load(config.model, jnp.dtype(config.dtype), devices=devices)


def choose_facts(config: RunConfig, checkpoint: Checkpoint, report: Report) -> list[Fact]:
    """The facts to edit, in order, without those that the run's network was trained on.

    Raises FactError where the set has too few.
    """
    facts = load_facts(config.facts, skip_invalid=config.skip_invalid)
    if config.order == "random":
        facts = [facts[i] for i in jax.random.permutation(run_key(config, "order"), len(facts)).tolist()]
    if config.network is not None:
        seen = learned_ids(config.network, config.facts)
        facts = [fact for fact in facts if fact.id not in seen]
    if config.known:
        facts = known_facts(facts, config.count, checkpoint, report)
    if len(facts) < config.count and method(config.editor).request == "facts":
        what = "that the model knows " if config.known else ""
        raise FactError(
            f"{config.facts!r} has {len(facts)} facts {what}but {config.count} are asked for: lower --count"
            + (", or take unknown facts too with --no-known" if config.known else "")
        )
    return facts[: config.count]


def known_facts(
    facts: Sequence[Fact], count: int, checkpoint: Checkpoint, report: Report = quiet, batch: int = 64
) -> list[Fact]:
    """The first `count` facts whose true object the unedited model gives by arg-max on the bare prompt."""
    model = checkpoint.model
    bare = [fact.bare() for fact in facts]
    shape = probe_shape(bare, checkpoint.tokenizer, max_length=model.config.max_positions)
    known: list[Fact] = []
    for start in range(0, len(facts), batch):
        rows = bare[start : start + batch]
        probes = encode_probes(
            rows + rows[-1:] * (batch - len(rows)),
            checkpoint.tokenizer,
            max_length=model.config.max_positions,
            shape=shape,
        )
        knows = to_host(answers_together(model, checkpoint.params, probes).scores["knows"])[: len(rows)]
        known += [fact for fact, yes in zip(facts[start : start + batch], knows, strict=True) if yes]
        report("finding facts the model knows", min(len(known), count), count)
        if len(known) >= count:
            break
    return known[:count]


def draw_contexts(config: RunConfig, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The editor's context prefixes, sampled from the model by the run's seed."""
    style = method(config.editor).contexts
    if style is None:
        return ("",)
    return sample_contexts(
        generator(checkpoint, top_k=5), checkpoint.tokenizer, style, run_key(config, "contexts")
    )


def generator(checkpoint: Checkpoint, top_k: int):
    """`sample` on the unedited model, special tokens banned."""
    banned = tuple(sorted(set(checkpoint.tokenizer.all_special_ids)))

    def generate(prompt: Array, valid: Array, steps: int, key: Array) -> np.ndarray:
        return to_host(
            sample(checkpoint.model, checkpoint.params, prompt, valid, steps, key, top_k, 1.0, banned)
        )

    return generate


def run_key(config: RunConfig, purpose: str) -> Array:
    """An independent PRNG key for each purpose of a run."""
    return jax.random.fold_in(jax.random.key(config.seed), PURPOSES.index(purpose))


def with_matrices(checkpoint: Checkpoint, matrices: Mapping[str, Array]) -> Checkpoint:
    """A model in which some matrices are others; its fingerprint stays that of the base weights."""
    return dataclasses.replace(checkpoint, params={**checkpoint.params, **matrices})


def prepare(
    config: RunConfig,
    checkpoint: Checkpoint,
    facts: list[Fact],
    contexts: tuple[str, ...],
    report: Report,
    origin: Mapping[str, Array] = MappingProxyType({}),
    cut: Cut | None = None,
) -> Prepared:
    """The editor with its second moments, and the parameters split for it.

    `checkpoint` are the base weights as `load_model` gives them, `origin` matrices that differ from them before the
    first update. The moments are those of the base weights all the same. `cut` is how the run's batches were cut
    before; by default as `cut_of` says.
    """
    chosen = method(config.editor)
    resolved = chosen.configure(checkpoint.model.config, config.settings)
    network = None
    if chosen.needs_net:
        network, resolved = trained_network(config, checkpoint, resolved)
    moments: dict[int, Float[Array, "d_k d_k"]] = {}
    asked = chosen.needs_moments or any(read_transform(text).row.needs_moments for text in config.transforms)
    if asked and resolved.layers is not None:  # without layers there are none, which the transform says
        generate = generator(checkpoint, top_k=50)
        moments = load_moments(
            config.moments, checkpoint, resolved.layers, generate, run_key(config, "corpus"), report
        )
    cut = cut or cut_of(config, checkpoint, facts, contexts, resolved)
    if cut.sizes:
        values = dataclasses.replace(resolved.values, sizes=cut.sizes)
        resolved = dataclasses.replace(resolved, values=values)
    devices = dataclasses.replace(checkpoint.model.placement, pieces=cut.pieces)  # type: ignore[type-var]
    model = dataclasses.replace(checkpoint.model, placement=devices, remat=cut.remat)
    checkpoint = dataclasses.replace(checkpoint, model=model)
    moments, network = replicated((moments, network), devices)
    editor = chosen.build(model, moments if network is None else network, resolved)
    if config.transforms:
        editor = chain(editor, *build_transforms(config.transforms, model, moments))
    checkpoint = with_matrices(checkpoint, origin)
    split = checkpoint.model.split(checkpoint.params, chosen.paths(checkpoint.model, resolved))
    params = Params(*(placed_parameters(part, devices) for part in split))
    columns = columns_of(model.config, params.frozen) if cut.columns else {}
    return Prepared(checkpoint, facts, contexts, moments, editor, resolved, params, devices, cut, columns)


def trained_network(
    config: RunConfig, checkpoint: Checkpoint, preset: HyperConfig
) -> tuple[Hypernet, HyperConfig]:
    """The network of the configuration, with the settings it was trained for; `preset` are those of the editor.

    Raises ConfigError where it was trained for another editor.
    """
    if config.settings != Settings():
        raise ConfigError(f"editor {config.editor!r}: its settings come with its network {config.network}")
    found = load_net(str(config.network), checkpoint.model, checkpoint.fingerprint)
    if found.config.aggregate != preset.aggregate:
        raise ConfigError(
            f"editor {config.editor!r} cannot edit by {config.network}: that network was trained for an editor that "
            f"puts updates together by {found.config.aggregate!r}, not by {preset.aggregate!r}; "
            f"`jaxedit train --editor {config.editor}` makes one"
        )
    return found


def environment(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What, besides the configuration, the numbers depend on."""
    checkpoint = prepared.checkpoint
    keys = {purpose: jax.random.key_data(run_key(config, purpose)).tolist() for purpose in PURPOSES}
    return {
        "fingerprint": checkpoint.fingerprint,
        "model_config": dataclasses.asdict(checkpoint.model.config),
        "editor": dataclasses.asdict(prepared.settings),
        "preset": preset_for(config.editor, checkpoint.model.config).source,
        "contexts": list(prepared.contexts),
        "seed": config.seed,
        "keys": keys,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "cut": prepared.cut._asdict(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    packages = ("jaxedit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    return {name: metadata.version(name) for name in packages}
