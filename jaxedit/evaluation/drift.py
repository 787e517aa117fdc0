"""How far next-token distributions have moved from those of the unedited model, on running text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.errors import ConfigError
from jaxedit.models.decoder import Decoder, causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params

POSITIONS = 64  # whose distributions over the vocabulary are held at once


class Drift(NamedTuple):
    """Means over all positions of a text."""

    kl: float  # KL(p_0 || p_t) of the next token, in nats; infinite where p_t rules out what p_0 allows
    agreement: float  # share of positions whose likeliest next token is the same


def drift(
    model: Model,
    before: Params | dict[str, Array],
    after: Params | dict[str, Array],
    blocks: Int[np.ndarray, "n length"],
    batch: int,
) -> Drift:
    """`Drift` from one set of parameters to another, over every position of blocks of tokens.

    Both models are run on `batch` blocks at a time, and distributions compared 64 positions at a time, whatever the
    text's length. NaN where a model's logits are. Raises ConfigError where there is no block or no token.
    """
    blocks = np.asarray(blocks)
    if blocks.ndim != 2 or 0 in blocks.shape or batch < 1:
        raise ConfigError(
            f"drift needs blocks [n >= 1, length >= 1] and batch >= 1, got {blocks.shape} and {batch}"
        )
    totals = np.zeros(2)
    for start in range(0, len(blocks), batch):
        rows = blocks[start : start + batch]
        padded = np.concatenate([rows, np.broadcast_to(rows[:1], (batch - len(rows), blocks.shape[1]))])
        found = divergence(model, before, after, jnp.asarray(padded))
        totals += [np.asarray(x, np.float64)[: len(rows)].sum() for x in found]
    kl, agreement = totals / blocks.size
    return Drift(float(kl), float(agreement))


@jax.jit
def divergence(
    model: Model,
    before: Params | dict[str, Array],
    after: Params | dict[str, Array],
    tokens: Int[Array, "N T"],
) -> tuple[Float[Array, "N T"], Bool[Array, "N T"]]:
    """KL(p_0 || p_t) at every position, and whether both arg-max agree.

    The models run in their own precision. KL is a small difference of large terms: it is summed in float64.
    """
    decoders = [model.bind(params) for params in (before, after)]

    def compare(h: list[Float[Array, "d"]]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        logits = [decoder.logits(x) for decoder, x in zip(decoders, h, strict=True)]
        with jax.enable_x64(True):
            p, q = (jax.nn.log_softmax(x.astype(jnp.float64)) for x in logits)
            terms = jnp.where(jnp.exp(p) == 0, 0.0, jnp.exp(p) * (p - q))  # NaN stays
            kl = terms.sum().astype(jnp.float32)
        return kl, logits[0].argmax() == logits[1].argmax()

    last = [last_layer(decoder, tokens).reshape(tokens.size, -1) for decoder in decoders]
    kl, same = jax.lax.map(compare, last, batch_size=POSITIONS)
    return kl.reshape(tokens.shape), same.reshape(tokens.shape)


def last_layer(decoder: Decoder, tokens: Int[Array, "N T"]) -> Float[Array, "N T d_model"]:
    """The residual stream after the last layer, of rows without padding."""
    valid = jnp.ones(tokens.shape, bool)
    at = positions(valid)
    layers = range(decoder.config.n_layers)
    return decoder.run(decoder.embed(tokens, at), layers, position=at, mask=causal_mask(valid))[0]
