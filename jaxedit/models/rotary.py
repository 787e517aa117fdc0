"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.models.config import DecoderConfig, RopeScaling


def inverse_frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Radians a position for each pair of head dimensions."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponent
    return frequencies if config.rope_scaling is None else _stretched(frequencies, config.rope_scaling)


def _stretched(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_angles(config: DecoderConfig, position: Int[Array, "N T"]) -> Float[Array, "N T half"] | None:
    """Angles by token and frequency, float32; `None` where positions are learned."""
    if config.position != "rope":
        return None
    return position[..., None].astype(jnp.float32) * jnp.asarray(inverse_frequencies(config), jnp.float32)


def rotate(x: Float[Array, "N T H D"], angles: Float[Array, "N T half"]) -> Float[Array, "N T H D"]:
    """Rotates the pairs `(x_i, x_{i + D/2})` by their angle; float32 inside."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
