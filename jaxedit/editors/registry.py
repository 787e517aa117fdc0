"""The table of editing methods: drives the command line, the conformance tests and the README."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Array

from jaxedit.editors.alphaedit import alphaedit_config, evoedit_config
from jaxedit.editors.blue import blue
from jaxedit.editors.checks import NULL_SPACES, EditorConfig, check, check_effect
from jaxedit.editors.d4s import d4s, d4s_config
from jaxedit.editors.depth import last_layers, late_layers, layer_span, single_layer
from jaxedit.editors.encore import encore_config
from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.full import FullConfig, PretrainConfig, continue_pretraining, full_fine_tune
from jaxedit.editors.hyperedit import hypernetwork
from jaxedit.editors.hypernet import Hypernet, fresh
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.lora import LoRAConfig, LoRASequenceConfig, lora, lora_sequence
from jaxedit.editors.lyaplock import lyaplock, lyaplock_config
from jaxedit.editors.malmen import malmen_config
from jaxedit.editors.memit import emmet_config, memit_config
from jaxedit.editors.mend import mend_config
from jaxedit.editors.moving_null_space import betaedit_config, langedit_config, moving_null_space
from jaxedit.editors.nas import nas_config
from jaxedit.editors.pmet import pmet_config
from jaxedit.editors.presets import preset_for
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.editors.ultraedit import LifelongConfig, stable_config, ultra_edit
from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.types import Editor

# What an editor may hold and not read (`Method.without`), and why.
WITHOUT = {
    "beta": "earlier keys weigh 1 in it",
    "lam_n": "it has no ridge on the update",
    "ridge": "its constraints are not softened",
    "null_threshold": "it writes along all directions",
    "null_fraction": "it writes along all directions",
}
# With another value of these an editor would be another method (`Method.fixed`), and why.
FIXED = {
    "memory": "it is made of what earlier edits leave it",
    "memory_keys": "keys are those of the unedited model",
    "beta": "earlier keys weigh 1 in its one-time solution",
    "ridge": "new keys weigh 1 in its one-time solution",
}


@dataclass(frozen=True)
class Settings:
    """Departures from an editor's preset; what is None stays as the preset has it."""

    layers: tuple[int, ...] | None = None
    """Layers that are written; of each the MLP down-projection, where the editor has no targets."""
    targets: tuple[str, ...] | None = None
    """Projections that are written, such as mlp.down, attention.query, mlp (LoRA, full fine-tuning)."""
    lam: float | None = None
    """Weight of C0 in the preservation matrix (closed forms)."""
    lam_n: float | None = None
    """Ridge on the update (closed forms)."""
    ridge: float | None = None
    """Softness of the constraints: EMMET's eps (closed forms), of the regression (UltraEdit, StableEdit)."""
    memory: bool | None = None
    """Preserve the keys of all earlier edits (closed forms)."""
    memory_keys: Literal["solved", "recomputed"] | None = None
    """Those keys as they were written, or as they are once all layers are (closed forms)."""
    beta: float | None = None
    """Their weight (closed forms)."""
    null_threshold: float | None = None
    """Write only along eigenvectors of C0 with an eigenvalue below (AlphaEdit and kin)."""
    null_fraction: float | None = None
    """Or along this share of its eigenvectors, smallest eigenvalues first."""
    allowance: float | None = None
    """Bound on what is lost of the corpus, in losses of the first batch: more for smaller ones (LyapLock)."""
    spread: Literal["even", "sqrt", "last"] | None = None
    """A layer's share of the residual: over the layers left, over their root, or all at the last."""
    values_at: Literal["last", "each", "shared"] | None = None
    """One value at the last layer; one at each layer for itself; or one at each, of which it writes its share."""
    anchor: float | None = None
    """Norm of all values; 0 takes the first batch's mean (NAS)."""
    learning_rate: float | None = None
    """Of Adam on the value (closed forms) or weights (gradient editors); of the step (hypernetworks, UltraEdit)."""
    steps: int | None = None
    """Steps of that optimisation in every update."""
    weight_decay: float | None = None
    """On the value's norm (closed forms), or decoupled on the weights (gradient editors)."""
    clamp: float | None = None
    """Bound on the value's norm over that of the unedited one (closed forms)."""
    kl: float | None = None
    """Weight of the KL term (closed forms)."""
    stop_loss: float | None = None
    """Loss below which the optimisation stops."""
    patience: int | None = None
    """Stop it once the target was the most probable answer at this many steps (MPES)."""
    reference_quirks: bool | None = None
    """Count those steps as the first release of ENCORE did."""
    bound: float | None = None
    """Bound on every entry's change (FT-L)."""
    centre: Literal["edit", "original"] | None = None
    """Centre of that bound: the weights before this edit, or before the sequence."""
    objective: Literal["target_new", "prompt_last"] | None = None
    """Where target tokens are scored: after each other, or all at the prompt's last token (gradient editors)."""
    clip_norm: float | None = None
    """Bound on the gradient's global norm (gradient editors)."""
    schedule: Literal["constant", "linear", "cosine_decay"] | None = None
    """Learning-rate schedule (gradient editors)."""
    schedule_steps: int | None = None
    """Its length in optimiser steps, warm-up included."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises linearly from 0."""
    rank: int | None = None
    """Rank of the adapters (LoRA), or of the network's maps (hypernetworks)."""
    alpha: float | None = None
    """The adapters' product counts alpha / rank times (LoRA)."""
    seed: int | None = None
    """Of the adapters' initial values (LoRA)."""
    tokens: Literal["all", "answer"] | None = None
    """Which tokens' keys and gradients are used (hypernetworks, UltraEdit, StableEdit)."""
    lifelong: bool | None = None
    """Go on with the network's running moments while editing (hypernetworks)."""


def down_projections(model: Model, config: Any) -> tuple[str, ...]:
    """The MLP down-projections of the configured layers."""
    return tuple(model.edited_paths(config.layers).values())


def chosen_parameters(model: Model, config: Any) -> tuple[str, ...]:
    """The configured targets of the configured layers."""
    return model.parameter_paths(config.layers, config.targets)


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    paper: str
    kind: Literal["closed form", "gradient", "hypernetwork"]
    edits: str
    remembers: str
    contexts: Literal["memit", "rome"] | None  # style of the sampled prefixes
    preset: Callable[[DecoderConfig], EditorConfig]
    build: Callable[[Model, Any, Any], Editor]  # with second moments by layer, or the trained network
    paths: Callable[[Model, Any], tuple[str, ...]] = down_projections  # of the parameters that it writes
    request: Literal["facts", "text"] = "facts"  # what an update takes: `Requests`, or a `TextBatch`
    fresh: Callable[[Model, Any, Array], Hypernet] | None = None  # an untrained network, where one is needed
    warms_up: bool = False  # has moments that may count facts before any is edited (`Editor.observe`)
    without: frozenset[str] = frozenset()  # settings that its configuration holds and nothing reads
    fixed: frozenset[str] = frozenset()  # settings of which it needs the value that it has

    @property
    def needs_moments(self) -> bool:
        return self.kind == "closed form"

    @property
    def needs_net(self) -> bool:
        return self.fresh is not None

    def configure(self, model: DecoderConfig, settings: Settings = Settings()) -> Any:
        """The preset for this model with the departures. Raises ConfigError for one without effect, or not its own.

        What `jaxedit.editors.presets` says of this editor and model comes before the depth rule.
        """
        config = self.preset(model)
        departures = {
            name: value for name, value in dataclasses.asdict(settings).items() if value is not None
        }
        for name, value in (preset_for(self.name, model).settings | departures).items():
            config = self._depart(config, name, value)
        check_effect(config, departures, self.name)
        check(config, self.name)
        if isinstance(config, LocateConfig):
            config = config.fitted(model)
        self.paths(Model(model), config)
        return config

    def _depart(self, config: EditorConfig, name: str, value: Any) -> EditorConfig:
        value = tuple(value) if isinstance(value, list) else value
        if name in self.without:
            raise ConfigError(f"editor {self.name!r}: {name} has no effect, {WITHOUT[name]}: leave it out")
        if name in self.fixed:
            raise ConfigError(f"editor {self.name!r}: {name} cannot be set, {FIXED[name]}: leave it out")
        if name in _names(config):
            other = NULL_SPACES.get(name)
            return dataclasses.replace(config, **{name: value} | ({other: None} if other else {}))
        values = getattr(config, "values", None)
        if values is not None and name in _names(values):
            return dataclasses.replace(config, values=dataclasses.replace(values, **{name: value}))
        known = _names(config) | (_names(values) if values is not None else set())
        known = (known & _names(Settings())) - self.without - self.fixed
        raise ConfigError(f"editor {self.name!r}: " + unknown_name("setting", name, known))


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


# Presets use the depth rule; `lam` is that of SmolLM2-135M, searched over decades. It is 1/20 of GPT2-XL's: its
# keys carry less energy. Weights of the other closed forms (lam, lam_n) are 1/20 of their papers' for GPT2-XL. A null
# space by threshold depends on that energy too, so it is given by a share of directions instead.
NULL_FRACTION = 0.8


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "rome", "arXiv 2202.05262", "closed form", "one layer, rank one a fact", "nothing", "rome",
            lambda model: rome_config(single_layer(model)), locate_and_edit,
        ),
        Method(
            "r-rome", "arXiv 2403.07175", "closed form", "one layer, rank one a fact", "nothing", "rome",
            lambda model: r_rome_config(single_layer(model)), locate_and_edit,
        ),
        Method(
            "memit", "arXiv 2210.07229", "closed form", "a span of layers, rank one a fact and layer",
            "keys of earlier edits, with memory", "memit",
            lambda model: memit_config(layer_span(model), lam=1000.0), locate_and_edit,
        ),
        Method(
            "emmet", "arXiv 2403.14236", "closed form", "one layer, rank one a fact", "nothing", "memit",
            lambda model: emmet_config(single_layer(model), lam=100.0), locate_and_edit,
        ),
        Method(
            "memit-history", "arXiv 2210.07229", "closed form", "a span of layers, rank one a fact and layer",
            "keys of earlier edits", "memit",
            lambda model: memit_config(layer_span(model), lam=1000.0, memory=True), locate_and_edit,
        ),
        Method(
            "pmet", "arXiv 2308.08742", "closed form", "a span of layers, rank one a fact and layer",
            "nothing", "memit",
            lambda model: pmet_config(layer_span(model), lam=300.0), locate_and_edit,
        ),
        Method(
            "alphaedit", "arXiv 2410.02355", "closed form",
            "a span of layers, rank one a fact and layer, within C0's null space",
            "keys of earlier edits", "memit",
            lambda model: alphaedit_config(layer_span(model), lam_n=0.5, fraction=NULL_FRACTION), locate_and_edit,
        ),
        Method(
            "encore", "arXiv 2502.01636", "closed form", "a span of layers, rank one a fact and layer",
            "keys of earlier edits", "memit",
            lambda model: encore_config(layer_span(model), lam=1000.0, lam_n=0.5), locate_and_edit,
        ),
        Method(
            "betaedit", "arXiv 2605.09285", "closed form",
            "a span of layers, rank one a fact and layer, within a null space that moves",
            "keys of earlier edits", "memit",
            lambda model: betaedit_config(layer_span(model), lam=150.0, lam_n=0.5, fraction=NULL_FRACTION),
            lambda model, moments, config: locate_and_edit(model, moments, config, moving_null_space(config)),
            without=frozenset({"beta"}), fixed=frozenset({"memory"}),
        ),
        Method(
            "langedit", "arXiv 2506.10800", "closed form",
            "a span of layers, rank one a fact and layer, within a null space that moves",
            "keys of earlier edits", "memit",
            lambda model: langedit_config(layer_span(model), lam_n=0.5, fraction=NULL_FRACTION),
            lambda model, moments, config: locate_and_edit(model, moments, config, moving_null_space(config)),
            without=frozenset({"beta"}), fixed=frozenset({"memory"}),
        ),
        Method(
            "evoedit", "arXiv 2510.13851", "closed form",
            "a span of layers, rank one a fact and layer, within a null space that shrinks",
            "the null space without earlier keys", "memit",
            lambda model: evoedit_config(layer_span(model), lam_n=0.2, fraction=NULL_FRACTION), locate_and_edit,
            fixed=frozenset({"memory"}),
        ),
        Method(
            "lyaplock", "arXiv 2505.15702", "closed form", "a span of layers, dense",
            "keys and outputs of earlier edits, the unedited matrices, a queue", "memit",
            lambda model: lyaplock_config(layer_span(model), lam=50.0),
            lambda model, moments, config: locate_and_edit(model, moments, config, lyaplock(config)),
            without=frozenset({"beta", "lam_n", "ridge", *NULL_SPACES}), fixed=frozenset({"memory"}),
        ),
        Method(
            "d4s", "arXiv 2410.23843", "closed form", "a span of layers, rank one a fact and layer",
            "keys of earlier edits, the unedited matrices", "memit",
            lambda model: d4s_config(layer_span(model), lam=1000.0),
            lambda model, moments, config: locate_and_edit(model, moments, config, d4s(config)),
            without=frozenset(NULL_SPACES), fixed=frozenset({"memory", "memory_keys", "beta", "ridge"}),
        ),
        Method(
            "nas", "arXiv 2602.02543", "closed form",
            "a span of layers, rank one a fact and layer, within C0's null space",
            "keys of earlier edits, the values' norm", "memit",
            lambda model: nas_config(layer_span(model), lam_n=0.5, fraction=NULL_FRACTION), locate_and_edit,
        ),
        Method(
            "memit-blue", "arXiv 2502.03748", "closed form", "two layers, rank one a fact and layer",
            "keys of earlier edits", "memit",
            lambda model: blue(memit_config(layer_span(model), lam=1000.0, memory=True)), locate_and_edit,
        ),
        Method(
            "ft", "arXiv 2012.00363", "gradient", "one layer, dense", "nothing", None,
            lambda model: FineTuneConfig((single_layer(model),)), lambda model, _, config: fine_tune(model, config),
        ),
        Method(
            "ft-l", "arXiv 2012.00363", "gradient", "one layer, dense, entries bounded",
            "the bound's centre, where that is the unedited model", None,
            lambda model: FineTuneConfig((single_layer(model),), bound=5e-4),
            lambda model, _, config: fine_tune(model, config),
        ),
        Method(
            "lora", "arXiv 2106.09685", "gradient", "chosen matrices, rank r an update",
            "a count of updates, to draw adapters from", None,
            lambda model: LoRAConfig(layers=(single_layer(model),)),
            lambda model, _, config: lora(model, config), chosen_parameters,
        ),
        Method(
            "lora-sequence", "arXiv 2106.09685", "gradient", "chosen matrices, rank r the whole sequence",
            "the adapters and AdamW's moments", None,
            lambda model: LoRASequenceConfig(layers=(single_layer(model),)),
            lambda model, _, config: lora_sequence(model, config), chosen_parameters,
        ),
        Method(
            "full-ft", "arXiv 2012.00363", "gradient", "all parameters, or chosen ones, dense",
            "AdamW's moments", None, lambda model: FullConfig(),
            lambda model, _, config: full_fine_tune(model, config), chosen_parameters,
        ),
        Method(
            "pretrain", "arXiv 2004.10964", "gradient", "all parameters, or chosen ones, dense",
            "AdamW's moments", None, lambda model: PretrainConfig(),
            lambda model, _, config: continue_pretraining(model, config), chosen_parameters, "text",
        ),
        Method(
            "mend", "arXiv 2110.11309", "hypernetwork", "all MLP matrices of the last three layers, rank one a token",
            "nothing", None, lambda model: mend_config(last_layers(model, 3), model.gated_mlp), hypernetwork,
            chosen_parameters, fresh=fresh,
        ),
        Method(
            "malmen", "arXiv 2311.04661", "hypernetwork", "the last six layers, rank one a token", "nothing", None,
            lambda model: malmen_config(last_layers(model, 6)), hypernetwork,
            chosen_parameters, fresh=fresh,
        ),
        Method(
            "ultraedit", "arXiv 2505.14679", "gradient", "a span of late layers, rank one a token",
            "running moments of keys and gradients", None, lambda model: LifelongConfig(late_layers(model)),
            lambda model, _, config: ultra_edit(model, config), chosen_parameters, warms_up=True,
        ),
        Method(
            "stableedit", "arXiv 2605.11836", "gradient", "a span of late layers, rank one a token",
            "running moments of keys, covariance of gradients", None, lambda model: stable_config(late_layers(model)),
            lambda model, _, config: ultra_edit(model, config), chosen_parameters, warms_up=True,
        ),
    )
}  # fmt: skip


def method(name: str) -> Method:
    """The row of that name. Raises ConfigError with the nearest names."""
    if name not in METHODS:
        raise ConfigError(unknown_name("editor", name, METHODS))
    return METHODS[name]
