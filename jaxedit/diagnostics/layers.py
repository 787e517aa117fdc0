"""The choice of layers to edit, by causal tracing, for models without a preset.

Meng et al. 2022 (arXiv 2202.05262), section 2.2: recall goes through the MLPs at the subject's last token.
"""

import numpy as np
from jaxtyping import Float

from jaxedit.errors import ConfigError


def choose_layer(effect: Float[np.ndarray, "L"]) -> int:
    """The layer with the highest average indirect effect of MLP outputs at the subject's last token.

    Of equal ones the lowest. Raises ConfigError for effects that are empty or not finite.
    """
    return choose_span(effect, 1)[0]


def choose_span(effect: Float[np.ndarray, "L"], width: int) -> tuple[int, ...]:
    """The `width` consecutive layers whose mean effect is the highest, ascending; of equal ones the lowest.

    Raises ConfigError for effects that are not finite, and for a width that the model does not have.
    """
    effect = np.asarray(effect, np.float64)
    if not effect.size or not np.isfinite(effect).all():
        raise ConfigError(f"effects are {effect.tolist()}; layers are chosen by finite numbers, one a layer")
    if not 1 <= width <= effect.size:
        raise ConfigError(f"width is {width}; it must be from 1 to the number of layers, {effect.size}")
    means = np.lib.stride_tricks.sliding_window_view(effect, width).mean(axis=-1)
    first = int(means.argmax())
    return tuple(range(first, first + width))
