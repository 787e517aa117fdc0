"""The table of editing methods: drives the command line, the conformance tests and the README."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Array

from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.memit import emmet_config, memit_config
from jaxedit.editors.presets import preset_for
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.errors import ConfigError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.types import Editor

EditorConfig = LocateConfig | FineTuneConfig


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
    """Softness of the constraints: EMMET's eps (closed forms)."""
    memory: bool | None = None
    """Preserve the keys of all earlier edits (closed forms)."""
    learning_rate: float | None = None
    """Of Adam: on the value (closed forms), or on the weights (FT)."""
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


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    paper: str
    kind: Literal["closed form", "gradient"]
    edits: str
    remembers: str
    contexts: Literal["memit", "rome"] | None  # style of the sampled prefixes
    preset: Callable[[DecoderConfig], EditorConfig]
    build: Callable[[Model, Mapping[int, Array], Any], Editor]

    @property
    def needs_moments(self) -> bool:
        return self.kind == "closed form"

    def configure(self, model: DecoderConfig, settings: Settings = Settings()) -> EditorConfig:
        """The preset for this model with the departures. Raises ConfigError for one it does not have.

        What `jaxedit.editors.presets` says of this editor and model comes before the depth rule.
        """
        config = self.preset(model)
        departures = {
            name: value for name, value in dataclasses.asdict(settings).items() if value is not None
        }
        for name, value in (preset_for(self.name, model).settings | departures).items():
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
    Model(model).edited_paths(config.layers)
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


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def single_layer(model: DecoderConfig) -> int:
    """Depth rule for editors of one layer: 0.28 of the depth (layer 8 of SmolLM2-135M's 30)."""
    return round(0.28 * (model.n_layers - 1))


def layer_span(model: DecoderConfig) -> tuple[int, ...]:
    """Depth rule for editors of several layers: 0.2 to 0.35 of the depth (layers 6 to 10 of 30)."""
    last = model.n_layers - 1
    return tuple(range(round(0.2 * last), round(0.35 * last) + 1))


# These presets use the depth rule, and hold where `presets.py` has none; `lam` is that of SmolLM2-135M.
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
    )
}  # fmt: skip


def method(name: str) -> Method:
    """The row of that name. Raises ConfigError with the nearest names."""
    if name not in METHODS:
        raise ConfigError(unknown_name("editor", name, METHODS))
    return METHODS[name]
