"""Which layers of a model see a window of tokens only."""

from collections.abc import Callable

from jaxedit.models.families.base import Settings

KINDS = {"sliding_attention": True, "full_attention": False}


def read_windows(
    settings: Settings, window: int | None, n_layers: int, is_local: Callable[[int], bool]
) -> tuple[int | None, tuple[int, ...]]:
    """The window and the local layers: those of `layer_types`, or by the family's rule where it is absent.

    Raises ModelError for another kind of layer, a list of another length, and local layers without a window.
    """
    kinds = settings.values.get("layer_types")
    if kinds is None:
        local = tuple(layer for layer in range(n_layers) if is_local(layer))
    elif not isinstance(kinds, list) or len(kinds) != n_layers or not set(map(str, kinds)) <= KINDS.keys():
        raise settings.wrong("layer_types", f"{n_layers} of {', '.join(KINDS)}")
    else:
        local = tuple(layer for layer, kind in enumerate(kinds) if KINDS[kind])
    if local and window is None:
        raise settings.wrong("sliding_window", f"a number of tokens, for layers {local} see a window of them")
    return (window, local) if local else (None, ())
