"""What a model makes of running text: perplexity, and how far next-token distributions are from another model's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxedit.errors import ConfigError
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.processes import to_host
from jaxedit.types import Params

POSITIONS = 64  # whose distributions over the vocabulary are held at once


class Drift(NamedTuple):
    """Means over all positions of a text."""

    kl: float  # KL(p_0 || p_t) of the next token, in nats; infinite where p_t rules out what p_0 allows
    agreement: float  # share of positions whose likeliest next token is the same


class Reading(NamedTuple):
    """What a model makes of a text."""

    perplexity: float  # of all tokens but the first of each block; NaN where no block has another
    drift: Drift


def drift(
    model: Model,
    before: Params | dict[str, Array],
    after: Params | dict[str, Array],
    blocks: Int[np.ndarray, "n length"],
    batch: int,
) -> Drift:
    """`Drift` from one set of parameters to another, over every position of blocks of tokens.

    NaN where a model's logits are. Raises ConfigError where there is no block or no token.
    """
    return Comparison(model, before, blocks, batch).read(after).drift


class Comparison:
    """Any number of models beside the one of `before`, which reads the blocks of tokens once.

    Models are run on `batch` blocks at a time, and distributions compared 64 positions at a time, whatever the text's
    length. What is kept of the first model are its hidden states after the last layer, on the host. Raises
    ConfigError where there is no block or no token.
    """

    def __init__(
        self,
        model: Model,
        before: Params | dict[str, Array],
        blocks: Int[np.ndarray, "n length"],
        batch: int,
    ):
        blocks = np.asarray(blocks)
        if blocks.ndim != 2 or 0 in blocks.shape or batch < 1:
            raise ConfigError(
                f"drift needs blocks [n >= 1, length >= 1] and batch >= 1, got {blocks.shape} and {batch}"
            )
        filled = np.concatenate([blocks, np.repeat(blocks[:1], -len(blocks) % batch, axis=0)])
        self._model, self._before, self._shape = model, before, blocks.shape
        self._batches = [jnp.asarray(filled[i : i + batch]) for i in range(0, len(filled), batch)]
        self._states = [to_host(last_states(model, before, tokens)) for tokens in self._batches]

    def read(self, after: Params | dict[str, Array]) -> Reading:
        """Perplexity of a model, and its drift from the first one; NaN where its logits are."""
        parts = []
        for tokens, known in zip(self._batches, self._states, strict=True):
            states = known, last_states(self._model, after, tokens)
            parts.append(to_host(divergence(self._model, self._before, after, states, tokens)))
        count, length = self._shape
        kl, same, loss = (np.concatenate(x)[:count].astype(np.float64) for x in zip(*parts, strict=True))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            perplexity = np.exp(loss[:, :-1].sum() / np.float64(count * (length - 1)))
        return Reading(float(perplexity), Drift(float(kl.mean()), float(same.mean())))


@jax.jit
def divergence(
    model: Model,
    before: Params | dict[str, Array],
    after: Params | dict[str, Array],
    states: tuple[Float[ArrayLike, "N T d_model"], Float[ArrayLike, "N T d_model"]],
    tokens: Int[Array, "N T"],
) -> tuple[Float[Array, "N T"], Bool[Array, "N T"], Float[Array, "N T"]]:
    """By position, of `last_states` of both: KL(p_0 || p_t), whether both arg-max agree, -log p_t of the next token.

    The last position's next token is taken to be the row's first. The models run in their own precision. KL is a
    small difference of large terms: it is summed in float64.
    """
    decoders = [model.bind(params) for params in (before, after)]

    def compare(at: tuple[list[Float[Array, "d"]], Int[Array, ""]]) -> tuple[Array, Array, Array]:
        h, following = at
        logits = [decoder.logits(x) for decoder, x in zip(decoders, h, strict=True)]
        with jax.enable_x64(True):
            p, q = (jax.nn.log_softmax(x.astype(jnp.float64)) for x in logits)
            terms = jnp.where(jnp.exp(p) == 0, 0.0, jnp.exp(p) * (p - q))  # NaN stays
            kl, loss = (x.astype(jnp.float32) for x in (terms.sum(), -q[following]))
        return kl, logits[0].argmax() == logits[1].argmax(), loss

    flat = [jnp.reshape(h, (tokens.size, -1)) for h in states]
    found = jax.lax.map(compare, (flat, jnp.roll(tokens, -1, axis=1).reshape(-1)), batch_size=POSITIONS)
    kl, same, loss = (x.reshape(tokens.shape) for x in found)
    return kl, same, loss


@jax.jit
def last_states(
    model: Model, params: Params | dict[str, Array], tokens: Int[Array, "N T"]
) -> Float[Array, "N T d_model"]:
    """The residual stream after the last layer, of rows without padding."""
    decoder = model.bind(params)
    valid = jnp.ones(tokens.shape, bool)
    at = positions(valid)
    layers = range(decoder.config.n_layers)
    return decoder.run(decoder.embed(tokens, at), layers, position=at, mask=causal_mask(valid))[0]
