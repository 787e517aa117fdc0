"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the layouts of Hugging Face."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.models.config import DecoderConfig, LinearScaling, RopeScaling


def inverse_frequencies(config: DecoderConfig, local: bool = False) -> Float[np.ndarray, "half"]:
    """Radians a position for each pair of head dimensions that is rotated, in global or in local layers."""
    width = config.head_dim if config.rotary_dim is None else config.rotary_dim
    exponent = np.arange(0, width, 2, dtype=np.float64) / width
    if local and config.local_rope_theta is not None:
        return config.local_rope_theta**-exponent
    return _scaled(config.rope_theta**-exponent, config.rope_scaling)


def _scaled(frequencies: np.ndarray, scaling: RopeScaling | LinearScaling | None) -> np.ndarray:
    match scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case RopeScaling():
            return _stretched(frequencies, scaling)


def _stretched(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_angles(
    config: DecoderConfig, position: Int[Array, "N T"], local: bool = False
) -> Float[Array, "N T half"] | None:
    """Angles by token and frequency, float32; `None` where positions are learned."""
    if config.position != "rope":
        return None
    frequencies = jnp.asarray(inverse_frequencies(config, local), jnp.float32)
    return position[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "N T H D"], angles: Float[Array, "N T half"], pairs: str = "halves"
) -> Float[Array, "N T H D"]:
    """Rotates pairs of the leading `2 * half` dimensions by their angle; float32 inside, the others as they are.

    Pairs are `(x_i, x_{i + half})` for "halves" and `(x_{2i}, x_{2i + 1})` for "neighbours".
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    width = 2 * angles.shape[-1]
    turned = x[..., :width].astype(jnp.float32)
    if pairs == "halves":
        a, b = jnp.split(turned, 2, axis=-1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
    first, second = a * cos - b * sin, b * cos + a * sin
    if pairs == "halves":
        turned = jnp.concatenate([first, second], axis=-1)
    else:
        turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)
    turned = turned.astype(x.dtype)
    return turned if width == x.shape[-1] else jnp.concatenate([turned, x[..., width:]], axis=-1)
