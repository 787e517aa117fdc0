"""What the hardware can do, measured, and how much arithmetic an edit cannot do without."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxedit.models.config import DecoderConfig


class Ceiling(NamedTuple):
    """Measured rates of the default device."""

    matmul: float  # FLOP/s of a large matrix product, in float32 at highest precision
    copy: float  # bytes/s read plus written


def measure_ceiling(size: int = 2048, repeats: int = 5, dtype: DTypeLike = "float32") -> Ceiling:
    """Best of `repeats` of a square product of `size` in `dtype` and of a copy of 256 MB."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    long = jnp.ones((64 * 2**20,), jnp.float32)
    return Ceiling(
        matmul=2 * size**3 / best_time(product, square, repeats=repeats),
        copy=2 * long.nbytes / best_time(jax.jit(lambda a: a + 1), long, repeats=repeats),
    )


def best_time(function: Callable[..., Any], *args: Any, repeats: int = 5) -> float:
    """Least seconds of `repeats` calls, after one that compiles."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def layer_flop(config: DecoderConfig) -> int:
    """FLOP of one layer's matrix products for one token: two a parameter."""
    heads = config.n_heads + 2 * config.n_kv_heads + config.n_heads
    mlp = (3 if config.gated_mlp else 2) * config.d_model * config.d_ff
    return 2 * (heads * config.head_dim * config.d_model + mlp)


def value_step_flop(config: DecoderConfig, layer: int, tail_tokens: int, read_tokens: int) -> int:
    """FLOP that one step of a value optimisation needs: forward and activation gradient, above `layer`.

    `tail_tokens` are those from the lookup token on, over all rows; `read_tokens` those whose next-token
    distribution is read. Attention's products and everything elementwise are left out.
    """
    above = config.n_layers - layer - 1
    vocabulary = 2 * config.d_model * config.vocab_size
    return 2 * (above * layer_flop(config) * tail_tokens + vocabulary * read_tokens)
