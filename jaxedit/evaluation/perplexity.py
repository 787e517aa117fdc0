"""Perplexity of a model on text cut into blocks of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.errors import ConfigError
from jaxedit.models.model import Model
from jaxedit.types import Params


def perplexity(
    model: Model, params: Params | dict[str, Array], blocks: Int[np.ndarray, "n length"], batch: int
) -> float:
    """`exp` of the mean negative log-likelihood of all tokens but the first of each block.

    Blocks are scored apart, `batch` at a time in one compiled function. Infinite or NaN where the model is.
    Raises ConfigError where there is no block, a block has fewer than two tokens, or `batch` is not positive.
    """
    blocks = np.asarray(blocks)
    if blocks.ndim != 2 or blocks.shape[0] < 1 or blocks.shape[1] < 2 or batch < 1:
        raise ConfigError(
            f"perplexity needs blocks [n >= 1, length >= 2] and batch >= 1, got {blocks.shape} and {batch}"
        )
    total = 0.0
    for start in range(0, len(blocks), batch):
        rows = blocks[start : start + batch]
        padded = np.concatenate([rows, np.broadcast_to(rows[:1], (batch - len(rows), blocks.shape[1]))])
        losses = np.asarray(negative_log_likelihood(model, params, jnp.asarray(padded)), np.float64)
        total += losses[: len(rows)].sum()
    with np.errstate(over="ignore"):
        return float(np.exp(total / (len(blocks) * (blocks.shape[1] - 1))))


@jax.jit
def negative_log_likelihood(
    model: Model, params: Params | dict[str, Array], tokens: Int[Array, "N T"]
) -> Float[Array, "N"]:
    """Nats of each row's tokens after the first, summed over the row; float32."""
    logits = model.bind(params)(tokens)[:, :-1]
    likelihood = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(likelihood, tokens[:, 1:, None], axis=-1)[..., 0].sum(axis=-1)
