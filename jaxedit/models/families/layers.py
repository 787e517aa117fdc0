"""Which layers of a model see a window of tokens only."""

from collections.abc import Callable
from dataclasses import replace

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Settings

KINDS = {"sliding_attention": True, "full_attention": False}


def with_windows(
    settings: Settings, base: DecoderConfig, window: int | None, is_local: Callable[[int], bool]
) -> DecoderConfig:
    """`base` with its local layers: those of `layer_types`, or by the family's rule where that is absent.

    Raises ModelError for another kind of layer, a list of another length, and local layers without a window.
    """
    kinds, n_layers = settings.values.get("layer_types"), base.n_layers
    if kinds is None:
        local = tuple(layer for layer in range(n_layers) if is_local(layer))
    elif not isinstance(kinds, list) or len(kinds) != n_layers or not set(map(str, kinds)) <= KINDS.keys():
        raise settings.wrong("layer_types", f"{n_layers} of {', '.join(KINDS)}")
    else:
        local = tuple(layer for layer, kind in enumerate(kinds) if KINDS[kind])
    if local and window is None:
        raise settings.wrong("sliding_window", f"a number of tokens, for layers {local} see a window of them")
    return replace(base, window=window if local else None, local_layers=local)
