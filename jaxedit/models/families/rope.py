"""How rotary embedding is configured: `rope_parameters` (transformers 5), or the keys of older versions."""

from typing import Any

from jaxedit.errors import ModelError
from jaxedit.models.config import LinearScaling, RopeScaling
from jaxedit.models.families.base import Settings

SCALINGS = ("default", "linear", "llama3")


def rope_values(settings: Settings) -> dict[str, Any]:
    """The rotary parameters as they are given. Raises ModelError where they are no object."""
    given = settings.values.get("rope_parameters") or settings.values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelError(
            f"config.json of this {settings.family} model: rotary parameters are {given!r}, expected an object"
        )
    return given


def read_rope(
    settings: Settings, given: dict[str, Any], theta: float, scalings: tuple[str, ...] = SCALINGS
) -> tuple[float, RopeScaling | LinearScaling | None]:
    """Rotary base (`theta` where none is given) and scaling. Raises ModelError for one not in `scalings`."""
    rope = Settings(given, settings.family)
    theta = rope.number("rope_theta", theta)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in scalings:
        known = " and ".join(map(repr, scalings))
        raise ModelError(
            f"config.json of this {settings.family} model: rotary scaling {kind!r} is not supported, only {known}"
        )
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(rope.number("factor"))
    return theta, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.integer("original_max_position_embeddings"),
    )


def rotary_width(settings: Settings, given: dict[str, Any], name: str, default: float, head_dim: int) -> int:
    """How many dimensions of a head are rotated: the share `partial_rotary_factor`, or `name`, of them.

    Raises ModelError where that is not an even number of dimensions.
    """
    rope = Settings(given, settings.family)
    share = rope.number("partial_rotary_factor", settings.number(name, default))
    width = int(head_dim * share) if share <= 1 else 0
    if width == 0 or width % 2:
        raise ModelError(
            f"config.json of this {settings.family} model: a share of {share} of {head_dim} dimensions is rotated, "
            f"which comes to {width}; expected an even number of them"
        )
    return width
