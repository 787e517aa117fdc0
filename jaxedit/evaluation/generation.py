"""Sampling text from the decoder with a fixed-size key/value memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxedit.errors import ConfigError
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params


def sample(
    model: Model,
    params: Params | dict[str, Array],
    prompt: Int[Array, "N P"] | Int[np.ndarray, "N P"],
    valid: Bool[Array, "N P"] | Bool[np.ndarray, "N P"],
    steps: int,
    key: Array,
    top_k: int = 1,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
) -> Int[Array, "N steps"]:
    """Continues right-aligned prompts by `steps` tokens, compiled once for their shape, `steps`, `top_k`, `banned`.

    A token is drawn among the `top_k` likeliest (0: all), by probabilities at this temperature. `top_k` 1 or
    temperature 0 is greedy. `banned` ids are never drawn. With one key, what a row draws depends on the rows beside
    it; with a key for every row (`jax.random.split(key, N)`) it draws what it would alone.

    Raises ConfigError for a value out of range, prompts that are not right-aligned, or another number of keys.
    """
    _check(model.config.vocab_size, prompt, valid, steps, key, top_k, temperature, banned)
    rows = jnp.asarray(prompt), jnp.asarray(valid)
    return _sample(model, params, *rows, steps, key, top_k, temperature, banned)


def likeliest(
    logits: Float[Array, "N V"], top_k: int, temperature: float | Array, banned: tuple[int, ...]
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """The `top_k` likeliest tokens (0: all), best first: their logits at this temperature, and their ids."""
    if banned:
        logits = logits.at[:, jnp.array(banned)].set(-jnp.inf)
    best, index = jax.lax.top_k(logits, top_k or logits.shape[-1])
    return best / temperature, index


def next_token(
    logits: Float[Array, "N V"], key: Array, top_k: int, temperature: float | Array, banned: tuple[int, ...]
) -> Int[Array, "N"]:
    """A draw from `likeliest`; the likeliest itself at temperature 0. One key for all rows, or one for each."""
    scores, index = likeliest(logits, top_k, temperature, banned)
    if key.ndim:
        choice = jax.vmap(jax.random.categorical)(key, scores)
    else:
        choice = jax.random.categorical(key, scores, axis=-1)
    choice = jnp.where(temperature > 0, choice, 0)
    return jnp.take_along_axis(index, choice[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 4, 6, 8))
def _sample(
    model: Model,
    params: Params | dict[str, Array],
    prompt: Int[Array, "N P"],
    valid: Bool[Array, "N P"],
    steps: int,
    key: Array,
    top_k: int,
    temperature: Float[Array, ""],
    banned: tuple[int, ...],
) -> Int[Array, "N steps"]:
    decoder, layers = model.bind(params), range(model.config.n_layers)
    width = prompt.shape[1]
    at = positions(valid)
    h, _, memory = decoder.run(
        decoder.embed(prompt, at), layers, position=at, mask=causal_mask(valid), keep_memory=True
    )
    memory = {layer: kept.by_tokens(lambda x, axis: padded(x, steps, axis)) for layer, kept in memory.items()}
    seen = jnp.pad(valid, ((0, 0), (0, steps)))
    keys = (
        jax.random.split(key, steps)
        if not key.ndim
        else jax.vmap(lambda one: jax.random.split(one, steps))(key).T
    )
    first = next_token(decoder.logits(h[:, -1]), keys[0], top_k, temperature, banned)

    def step(carry, inputs):
        token, memory, seen = carry
        slot, key = inputs
        position = seen.sum(axis=-1, keepdims=True)
        seen = seen.at[:, slot].set(True)
        h, _, memory = decoder.run(
            decoder.embed(token[:, None], position),
            layers,
            position=position,
            mask=seen[:, None],
            memory=memory,
            slot=slot,
            keep_memory=True,
        )
        following = next_token(decoder.logits(h[:, 0]), key, top_k, temperature, banned)
        return (following, memory, seen), token

    inputs = (width + jnp.arange(steps), jnp.roll(keys, -1, axis=0))
    _, tokens = jax.lax.scan(step, (first, memory, seen), inputs)
    return tokens.T


def padded(x: Shaped[Array, "*shape"], count: int, axis: int) -> Shaped[Array, "*padded"]:
    """With `count` zeros behind what is along the axis."""
    return jnp.pad(x, [(0, count if i == axis else 0) for i in range(x.ndim)])


def _check(
    vocabulary: int,
    prompt: Array | np.ndarray,
    valid: Array | np.ndarray,
    steps: int,
    key: Array,
    top_k: int,
    temperature: float,
    banned: tuple[int, ...],
) -> None:
    if steps < 1:
        raise ConfigError(f"steps is {steps}; at least 1 token is written")
    if not 0 <= top_k <= vocabulary:
        raise ConfigError(
            f"top_k is {top_k}; it must be 1 to {vocabulary}, the vocabulary, or 0 for all of it"
        )
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature is {temperature}; it must be finite and at least 0, which is greedy")
    if wrong := [token for token in banned if not 0 <= token < vocabulary]:
        raise ConfigError(f"banned has {wrong[0]}; ids are 0 to {vocabulary - 1}")
    if len(set(banned)) == vocabulary:
        raise ConfigError("banned has all of the vocabulary: leave something to write")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), prompt.shape[:1]):
        raise ConfigError(
            f"key is {key.dtype}{list(key.shape)}; give one jax.random.key, or one for each of {len(prompt)} prompts"
        )
    if isinstance(valid, jax.core.Tracer):
        return
    real = np.asarray(valid)
    if real.shape != prompt.shape or not real[:, -1:].any(axis=1).all() or (real[:, :-1] > real[:, 1:]).any():
        raise ConfigError(
            f"prompts {prompt.shape} with mask {real.shape} are not right-aligned rows of at least one token: "
            f"put the padding before them"
        )
