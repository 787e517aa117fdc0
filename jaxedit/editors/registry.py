"""The table of editing methods: drives the command line, the conformance tests and the README."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Array

from jaxedit.editors.features import FeatureConfig
from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.hyperedit import hypernetwork
from jaxedit.editors.hypernet import HyperConfig, Hypernet, fresh
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.malmen import malmen_config
from jaxedit.editors.memit import emmet_config, memit_config
from jaxedit.editors.mend import mend_config
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.editors.ultraedit import LifelongConfig, stable_config, ultra_edit
from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.types import Editor

EditorConfig = LocateConfig | FineTuneConfig | FeatureConfig


@dataclass(frozen=True)
class Settings:
    """Departures from an editor's preset; what is None stays as the preset has it."""

    layers: tuple[int, ...] | None = None
    """Layers whose MLP down-projection is written."""
    lam: float | None = None
    """Weight of C0 in the preservation matrix (closed forms)."""
    lam_n: float | None = None
    """Ridge on the update (closed forms)."""
    ridge: float | None = None
    """Softness of the constraints: EMMET's eps (closed forms), of the regression (UltraEdit, StableEdit)."""
    memory: bool | None = None
    """Preserve the keys of all earlier edits (closed forms)."""
    learning_rate: float | None = None
    """Of Adam: on the value (closed forms), or on the weights (FT); of the step (hypernetworks, UltraEdit)."""
    steps: int | None = None
    """Steps of that optimisation."""
    weight_decay: float | None = None
    """On the value's norm (closed forms)."""
    clamp: float | None = None
    """Bound on the value's norm over that of the unedited one (closed forms)."""
    kl: float | None = None
    """Weight of the KL term (closed forms)."""
    stop_loss: float | None = None
    """Loss below which the optimisation stops."""
    bound: float | None = None
    """Bound on every entry's change (FT-L)."""
    centre: Literal["edit", "original"] | None = None
    """Centre of that bound: the weights before this edit, or before the sequence."""
    matrices: tuple[str, ...] | None = None
    """Linear layers of a block, such as "mlp.up" (hypernetworks, UltraEdit, StableEdit)."""
    tokens: Literal["all", "answer"] | None = None
    """Which tokens' keys and gradients are used (the same)."""
    rank: int | None = None
    """Rank of the network's maps (hypernetworks)."""
    lifelong: bool | None = None
    """Go on with the network's running moments while editing (hypernetworks)."""


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
    fresh: Callable[[Model, Any, Array], Hypernet] | None = None  # an untrained network, where one is needed

    @property
    def needs_moments(self) -> bool:
        return self.kind == "closed form"

    @property
    def needs_net(self) -> bool:
        return self.fresh is not None

    def configure(self, model: DecoderConfig, settings: Settings = Settings()) -> EditorConfig:
        """The preset for this model with the departures. Raises ConfigError for one it does not have."""
        config = self.preset(model)
        for name, value in dataclasses.asdict(settings).items():
            if value is not None:
                config = self._depart(config, name, value)
        check(config, model, self.name)
        return config

    def _depart(self, config: EditorConfig, name: str, value: Any) -> EditorConfig:
        value = tuple(value) if isinstance(value, list) else value
        if name in _names(config):
            return dataclasses.replace(config, **{name: value})
        values = getattr(config, "values", None)
        if values is not None and name in _names(values):
            return dataclasses.replace(config, values=dataclasses.replace(values, **{name: value}))
        known = _names(config) | (_names(values) if values is not None else set())
        raise ConfigError(
            f"editor {self.name!r}: " + unknown_name("setting", name, known & _names(Settings()))
        )


def check(config: EditorConfig, model: DecoderConfig, editor: str) -> None:
    """Raises ConfigError for numbers that cannot work, naming editor, setting and range."""
    if not config.layers or list(config.layers) != sorted(set(config.layers)):
        raise ConfigError(
            f"editor {editor!r}: layers are {config.layers}; give one or more, ascending, each once"
        )
    edited_paths(Model(model), config)
    if isinstance(config, FeatureConfig):
        check_features(config, editor)
        return
    optimiser = config.values if isinstance(config, LocateConfig) else config
    positive = {"learning_rate": optimiser.learning_rate, "steps": optimiser.steps}
    not_negative = {"stop_loss": optimiser.stop_loss}
    if isinstance(config, LocateConfig):
        positive |= {"lam": config.lam, "clamp": config.values.clamp}
        not_negative |= {"lam_n": config.lam_n, "ridge": config.ridge, "kl": config.values.kl}
        not_negative |= {"weight_decay": config.values.weight_decay}
    elif config.bound is not None:
        positive |= {"bound": config.bound}
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"editor {editor!r}: {name} is {value}; it must be above 0")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ConfigError(f"editor {editor!r}: {name} is {value}; it must not be negative")


def check_features(config: FeatureConfig, editor: str) -> None:
    """`check` of editors that work on token-wise features."""
    names = {HyperConfig: ("learning_rate", "rank", "blocks"), LifelongConfig: ("learning_rate", "ridge")}
    for name in names[type(config)]:
        if not (value := getattr(config, name)) > 0:
            raise ConfigError(f"editor {editor!r}: {name} is {value}; it must be above 0")


def edited_paths(model: Model, config: EditorConfig) -> tuple[str, ...]:
    """Paths of all matrices that the editor of `config` writes.

    Raises ConfigError for a layer or matrix that the model does not have.
    """
    return model.matrix_paths(config.layers, getattr(config, "matrices", ("mlp.down",)))


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def single_layer(model: DecoderConfig) -> int:
    """Depth rule for editors of one layer: 0.28 of the depth (layer 8 of SmolLM2-135M's 30)."""
    return round(0.28 * (model.n_layers - 1))


def layer_span(model: DecoderConfig) -> tuple[int, ...]:
    """Depth rule for editors of several layers: 0.2 to 0.35 of the depth (layers 6 to 10 of 30)."""
    last = model.n_layers - 1
    return tuple(range(round(0.2 * last), round(0.35 * last) + 1))


def last_layers(model: DecoderConfig, count: int) -> tuple[int, ...]:
    """The last `count` layers, where MEND (three) and MALMEN (six of GPT-J) edit."""
    return tuple(range(max(model.n_layers - count, 0), model.n_layers))


def late_layers(model: DecoderConfig) -> tuple[int, ...]:
    """Depth rule for UltraEdit and StableEdit: 0.67 to 0.96 of the depth (GPT-J's 18 to 26 of 28)."""
    last = model.n_layers - 1
    return tuple(range(round(0.67 * last), round(0.96 * last) + 1))


# Presets use the depth rule; `lam` is that of SmolLM2-135M, searched over decades.
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
            "mend", "arXiv 2110.11309", "hypernetwork", "all MLP matrices of the last three layers, rank one a token",
            "nothing", None, lambda model: mend_config(last_layers(model, 3), model.gated_mlp), hypernetwork, fresh,
        ),
        Method(
            "malmen", "arXiv 2311.04661", "hypernetwork", "the last six layers, rank one a token", "nothing", None,
            lambda model: malmen_config(last_layers(model, 6)), hypernetwork, fresh,
        ),
        Method(
            "ultraedit", "arXiv 2505.14679", "gradient", "a span of late layers, rank one a token",
            "running moments of keys and gradients", None, lambda model: LifelongConfig(late_layers(model)),
            lambda model, _, config: ultra_edit(model, config),
        ),
        Method(
            "stableedit", "arXiv 2605.11836", "gradient", "a span of late layers, rank one a token",
            "running moments of keys, covariance of gradients", None, lambda model: stable_config(late_layers(model)),
            lambda model, _, config: ultra_edit(model, config),
        ),
    )
}  # fmt: skip


def method(name: str) -> Method:
    """The row of that name. Raises ConfigError with the nearest names."""
    if name not in METHODS:
        raise ConfigError(unknown_name("editor", name, METHODS))
    return METHODS[name]
