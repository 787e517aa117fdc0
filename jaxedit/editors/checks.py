"""Refuses settings that cannot work, or that would change nothing."""

from collections.abc import Mapping
from typing import Any

from jaxedit.editors.config import LocateConfig
from jaxedit.editors.features import FeatureConfig
from jaxedit.editors.finetune import FineTuneConfig
from jaxedit.editors.full import PretrainConfig
from jaxedit.editors.hypernet import HyperConfig
from jaxedit.editors.lora import LoRAConfig
from jaxedit.editors.lyaplock import LyapLockConfig
from jaxedit.editors.moving_null_space import MovingConfig
from jaxedit.editors.optimiser import OptimiserConfig, rate
from jaxedit.editors.ultraedit import LifelongConfig
from jaxedit.errors import ConfigError

EditorConfig = LocateConfig | FineTuneConfig | LoRAConfig | PretrainConfig | FeatureConfig
NULL_SPACES = {"null_threshold": "null_fraction", "null_fraction": "null_threshold"}  # one replaces the other
# Settings that change nothing while another is off.
NEEDS = {"beta": "memory", "memory_keys": "memory", "reference_quirks": "patience", "centre": "bound"}
# Of gradient editors, positive where given.
OPTIONAL = ("bound", "clip_norm", "schedule_steps", "rank", "alpha")


def check_effect(config: EditorConfig, given: Mapping[str, Any], editor: str) -> None:
    """Raises ConfigError for a setting given that changes nothing beside the others."""
    if given.keys() >= NULL_SPACES.keys():
        raise ConfigError(
            f"editor {editor!r}: null_threshold and null_fraction both say which null space is written; give one"
        )
    for name, other in NEEDS.items():
        holder = config if hasattr(config, other) else getattr(config, "values", None)
        if name in given and not getattr(holder, other):
            raise ConfigError(f"editor {editor!r}: {name} has no effect without {other}: give that too")
    if "lam" in given and isinstance(config, LocateConfig) and scale_cancels(config):
        raise ConfigError(
            f"editor {editor!r}: lam has no effect while its constraints hold exactly and nothing else is preserved "
            f"than C0: leave it out, or give lam_n, memory or ridge too"
        )


def check(config: EditorConfig, editor: str) -> None:
    """Raises ConfigError for numbers that cannot work, naming editor, setting and range."""
    layers = config.layers
    if layers is not None and (not layers or list(layers) != sorted(set(layers))):
        raise ConfigError(f"editor {editor!r}: layers are {layers}; give one or more, ascending, each once")
    positive, not_negative = ranges(config)
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"editor {editor!r}: {name} is {value}; it must be above 0")
    for name, value in not_negative.items():
        if value is not None and not value >= 0:
            raise ConfigError(f"editor {editor!r}: {name} is {value}; it must not be negative")
    fraction = getattr(config, "null_fraction", None)
    if fraction is not None and fraction > 1:
        raise ConfigError(f"editor {editor!r}: null_fraction is {fraction}; it must not be above 1")
    if isinstance(config, OptimiserConfig):
        try:
            rate(config)
        except ConfigError as error:
            raise ConfigError(f"editor {editor!r}: {error}") from None


def ranges(config: EditorConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that must be above 0, and those that must not be below; None where they are off."""

    def of(holder: Any, *names: str) -> dict[str, Any]:
        return {name: getattr(holder, name, None) for name in names}

    if isinstance(config, HyperConfig):
        return of(config, "learning_rate", "rank", "blocks"), {}
    if isinstance(config, LifelongConfig):
        return of(config, "learning_rate", "ridge", "steps"), of(config, "stop_loss")
    if isinstance(config, LocateConfig):
        positive = of(config.values, "learning_rate", "steps", "clamp", "patience")
        positive |= of(config, "beta", "null_threshold", "null_fraction", "allowance")
        if config.lam_n == 0 or only_lam_preserves(config):
            positive |= of(config, "lam")
        not_negative = of(config.values, "stop_loss", "kl", "weight_decay")
        return positive, not_negative | of(config, "lam", "lam_n", "ridge", "anchor")
    not_negative = of(config, "stop_loss", "weight_decay", "warmup_steps")
    return of(config, "learning_rate", "steps", *OPTIONAL), not_negative


def scale_cancels(config: LocateConfig) -> bool:
    """Whether the scale of C0 cancels: the update is `R (K^T M Q)^-1 K^T M` with M in inverse proportion to it."""
    exact = config.ridge == 0 and config.single_ridge in (None, 0)
    return exact and config.lam_n == 0 and not config.memory


def only_lam_preserves(config: LocateConfig) -> bool:
    """Whether nothing else stands in for C0 where `lam` is 0."""
    moving = isinstance(config, MovingConfig) and config.corpus is None
    return moving or isinstance(config, LyapLockConfig)
