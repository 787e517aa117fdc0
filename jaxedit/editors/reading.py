"""What locate-and-edit reads off the model at the lookup token: keys, and the value as it is."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.config import LocateConfig
from jaxedit.lookup import Lead, bare_rows
from jaxedit.models.decoder import Decoder
from jaxedit.types import Requests, Trace
from jaxedit.values import ValueConfig


class Keys(NamedTuple):
    """What a layer sees at the lookup token, by fact."""

    mean: Float[Array, "B d_k"]
    bare: Float[Array, "B d_k"]


class Reading(NamedTuple):
    """What one layer is written from."""

    keys: Keys
    now: Float[Array, "B d_model"]  # the value as it is, at the last layer of the span


def mean_keys(traced: Float[Array, "N 1 d_k"], requests: Requests, how: str) -> Keys:
    """Mean over the contexts of the keys at the lookup token; the KL row is not a context."""
    facts, n_rows, _ = requests.prefix.shape
    by_context = traced.astype(jnp.float32).reshape(facts, n_rows, -1)[:, : n_rows - 1]
    return Keys(mean_over_contexts(by_context, how), by_context[:, 0])


def mean_over_contexts(x: Float[Array, "B C d"], how: str) -> Float[Array, "B d"]:
    """ "plain": the mean; "half": the mean of the bare prompt and of the mean over prefixed prompts."""
    if how == "plain" or x.shape[1] == 1:
        return x.mean(axis=1)
    return (x[:, 0] + x[:, 1:].mean(axis=1)) / 2


def value_now(traced: Float[Array, "N 1 d_model"], requests: Requests, how: str) -> Float[Array, "B d_model"]:
    """The value of the bare prompt ("bare") or its mean over contexts; N are all rows, or the bare ones."""
    by_row = traced.astype(jnp.float32).reshape(requests.prefix.shape[0], -1, traced.shape[-1])
    return by_row[:, 0] if how == "bare" else mean_over_contexts(by_row[:, :-1], how)


def residual_from(values: ValueConfig) -> str:
    """The trace that the residual is measured in."""
    return "residual" if values.site == "block" else "mlp"


def residual_mean(config: LocateConfig) -> str:
    """How it is averaged: as the keys where the constraint is on what the matrix gives at their mean, else not.

    That is r-ROME's, and every method's where a norm follows the MLP. MEMIT takes the bare prompt's block.
    """
    return config.key_mean if config.values.site == "mlp" and config.query == "mean" else "bare"


def first_reading(
    trace: Trace, requests: Requests, config: LocateConfig, layers: tuple[int, ...], layer: int
) -> Reading:
    """Keys of a layer and the value at the last, before anything was written."""
    vectors = getattr(trace, residual_from(config.values))[layers[-1]]
    now = value_now(vectors, requests, residual_mean(config))
    return Reading(mean_keys(trace.key[layer], requests, config.key_mean), now)


def next_reading(
    decoder: Decoder, lead: Lead, requests: Requests, config: LocateConfig, layers: tuple[int, ...], done: int
) -> tuple[Lead, Reading]:
    """After the layer before was written: the lead at this layer's input, its keys, and the value as it is.

    Goes on from the hidden states of the layer just written; below it nothing changed.
    """
    before, layer, last = layers[done - 1], layers[done], layers[-1]
    wanted, how = residual_from(config.values), residual_mean(config)
    hidden, _, _ = decoder.run(lead.hidden, range(before, layer), position=lead.position, mask=lead.mask)
    lead = lead._replace(hidden=hidden)
    after, trace, _ = decoder.run(
        hidden,
        range(layer, layer + 1),
        position=lead.position,
        mask=lead.mask,
        trace=("key", wanted),
        trace_at=lead.at_lookup,
    )
    keys = mean_keys(trace.key[layer], requests, config.key_mean)
    if layer != last:
        rows = bare_rows(requests) if how == "bare" else jnp.arange(len(after))
        _, trace, _ = decoder.run(
            after[rows],
            range(layer + 1, last + 1),
            position=lead.position[rows],
            mask=lead.mask[rows],
            trace=(wanted,),
            trace_at=lead.at_lookup[rows],
        )
    return lead, Reading(keys, value_now(getattr(trace, wanted)[last], requests, how))


def keys_after(
    decoder: Decoder, lead: Lead, requests: Requests, config: LocateConfig
) -> dict[int, Float[Array, "B d_k"]]:
    """The facts' keys once all layers are written; `lead` is at the input of the first."""
    _, trace, _ = decoder.run(
        lead.hidden,
        range(config.layers[0], config.layers[-1] + 1),
        position=lead.position,
        mask=lead.mask,
        trace=("key",),
        trace_at=lead.at_lookup,
    )
    return {layer: mean_keys(trace.key[layer], requests, config.key_mean).mean for layer in config.layers}
