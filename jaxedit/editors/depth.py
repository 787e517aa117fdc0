"""Depth rules: the layers that editors write in models without a preset."""

from jaxedit.models.config import DecoderConfig


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
