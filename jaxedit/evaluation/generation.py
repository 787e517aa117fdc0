"""Sampling text from the decoder with a fixed-size key/value memory."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params


def next_token(
    logits: Float[Array, "N V"], key: Array, top_k: int, temperature: float, banned: tuple[int, ...]
) -> Int[Array, "N"]:
    """The arg-max for `top_k` 1, else a draw among the `top_k` likeliest."""
    if banned:
        logits = logits.at[:, jnp.array(banned)].set(-jnp.inf)
    best, index = jax.lax.top_k(logits, top_k)
    choice = jax.random.categorical(key, best / temperature, axis=-1)
    return jnp.take_along_axis(index, choice[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 4, 6, 7, 8))
def sample(
    model: Model,
    params: Params | dict[str, Array],
    prompt: Int[Array, "N P"],
    valid: Bool[Array, "N P"],
    steps: int,
    key: Array,
    top_k: int = 1,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
) -> Int[Array, "N steps"]:
    """Continues right-aligned prompts by `steps` tokens; `top_k` 1 is greedy. `banned` ids are never drawn."""
    decoder, layers = model.bind(params), range(model.config.n_layers)
    width = prompt.shape[1]
    at = positions(valid)
    h, _, memory = decoder.run(
        decoder.embed(prompt, at), layers, position=at, mask=causal_mask(valid), keep_memory=True
    )
    memory = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, steps), *[(0, 0)] * (x.ndim - 2))), memory)
    seen = jnp.pad(valid, ((0, 0), (0, steps)))
    keys = jax.random.split(key, steps)
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
