"""Vectors inside a model at chosen tokens of a set of prompts: all layers in one forward pass."""

from collections.abc import Collection
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.diagnostics.numbers import in_float64, norms, ratio
from jaxedit.diagnostics.similarity import mean_shift
from jaxedit.models.decoder import causal_mask, pick, positions
from jaxedit.models.model import Model
from jaxedit.types import Params, Requests

VECTORS = ("key", "mlp", "attention", "residual")
FACT_POSITIONS = ("subject_last", "last", "mean")
TEXT_POSITIONS = ("last", "mean")


class Prompts(NamedTuple):
    """N prompts of up to T tokens, contiguous, padding on either side, and where they are looked at."""

    tokens: Int[Array, "N T"]
    valid: Bool[Array, "N T"]
    at: Int[Array, "N P"]  # the P tokens whose vectors are taken
    counted: Bool[Array, "N T"]  # the tokens whose vectors are averaged


class Activations(NamedTuple):
    """Vectors of N prompts in float32, by layer L and position: the P tokens asked for, then the mean."""

    key: Float[Array, "L P+1 N d_ff"]  # input of the down-projection
    mlp: Float[Array, "L P+1 N d_model"]  # output of the MLP
    attention: Float[Array, "L P+1 N d_model"]  # output of the attention
    residual: Float[
        Array, "L P+1 N d_model"
    ]  # stream after the block; of the last, what goes into the final norm
    final: Float[Array, "1 P+1 N d_model"]  # out of the final norm


class Shift(NamedTuple):
    """N vectors of the same prompts before and after; means are over the prompts."""

    norm_before: Float[Array, ""]  # mean ||x||
    norm_after: Float[Array, ""]
    norm_ratio: Float[Array, ""]  # of these two
    cosine: Float[Array, ""]  # mean cosine of a vector and its old self
    change: Float[Array, ""]  # mean ||x_t - x_0|| over mean ||x_0||
    mean_shift: Float[Array, ""]  # distance of the mean vectors, over mean ||x_0||


def fact_prompts(requests: Requests) -> Prompts:
    """The bare prompts of B facts without their targets, at `FACT_POSITIONS`."""
    prefix, tail = requests.prefix[:, 0], requests.tail[:, 0]
    before, last = prefix.shape[1], requests.predict_at[:, 0, :1]
    inside = requests.tail_mask[:, 0] & (jnp.arange(tail.shape[1]) <= last)
    valid = jnp.concatenate([requests.prefix_mask[:, 0], inside], axis=1)
    at = jnp.concatenate([jnp.full_like(last, before), before + last], axis=1)
    return Prompts(jnp.concatenate([prefix, tail], axis=1), valid, at, valid)


def text_prompts(tokens: Int[Array, "N T"], valid: Bool[Array, "N T"]) -> Prompts:
    """Rows of text, at `TEXT_POSITIONS`."""
    last = tokens.shape[1] - 1 - jnp.argmax(jnp.flip(valid, axis=1), axis=1)
    return Prompts(tokens, valid, last[:, None].astype(jnp.int32), valid)


def without_first(prompts: Prompts) -> Prompts:
    """The first token of every prompt left out of the mean: its vectors may be hundreds of times as long as all
    others (massive activations, Sun et al. 2024, arXiv 2402.17762), and would be all that a mean shows."""
    first = jnp.cumsum(prompts.valid, axis=1) == 1
    return prompts._replace(counted=prompts.counted & ~(first & prompts.valid))


def collect(
    model: Model,
    params: Params | dict[str, Array],
    prompts: Prompts,
    vectors: Collection[str] = VECTORS,
) -> Activations:
    """The vectors named, of all layers, by one forward pass; those not asked for have no layers (L = 0)."""
    decoder, config = model.bind(params), model.config
    position = positions(prompts.valid)
    h, trace, _ = decoder.run(
        decoder.embed(prompts.tokens, position),
        range(config.n_layers),
        position=position,
        mask=causal_mask(prompts.valid),
        trace=tuple(vectors),
    )

    def taken(x: Float[Array, "N T d"]) -> Float[Array, "P+1 N d"]:
        x = x.astype(jnp.float32)
        share = prompts.counted / jnp.maximum(prompts.counted.sum(axis=1, keepdims=True), 1)
        mean = jnp.einsum("nt,ntd->nd", share, x, precision="highest")
        return jnp.concatenate([jnp.moveaxis(pick(x, prompts.at), 1, 0), mean[None]])

    def layers(name: str) -> Float[Array, "L P+1 N d"]:
        width = config.d_ff if name == "key" else config.d_model
        empty = jnp.zeros((0, prompts.at.shape[1] + 1, len(prompts.tokens), width))
        found = getattr(trace, name)
        return jnp.stack([taken(found[layer]) for layer in sorted(found)]) if found else empty

    found = [layers(name) for name in VECTORS]
    return Activations._make([*found, taken(decoder.final_norm(h))[None]])


@in_float64
def shift(before: Float[Array, "N d"], after: Float[Array, "N d"]) -> Shift:
    """How N vectors changed. Quotients by zero vectors are infinite; 0 / 0 is 0."""
    old, new, changed = norms(before), norms(after), norms(after - before)
    mean = jnp.mean(old)
    cosine = ratio(jnp.sum(before * after, axis=-1), old * new)
    return Shift(
        norm_before=mean,
        norm_after=jnp.mean(new),
        norm_ratio=ratio(jnp.mean(new), mean),
        cosine=jnp.mean(cosine),
        change=ratio(jnp.mean(changed), mean),
        mean_shift=ratio(mean_shift(before, after), mean),
    )


@in_float64
def residual_shares(
    attention: Float[Array, "L N d"], mlp: Float[Array, "L N d"]
) -> tuple[Float[Array, "L"], Float[Array, "L"]]:
    """What each module adds to the residual stream: mean over N of ||x_module|| / sum over all modules.

    ENCORE (arXiv 2502.01636, section 5) sees the edited layers' share grow. All shares together make 1.
    Where a norm follows the module, as in Gemma 2 and OLMo 2, they are of what goes into it.
    """
    lengths = jnp.stack([norms(attention), norms(mlp)])
    shares = jnp.mean(ratio(lengths, jnp.sum(lengths, axis=(0, 1))), axis=-1)
    return shares[0], shares[1]
