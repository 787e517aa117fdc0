"""Locate-and-edit as one editor: optimise values, then write them at their keys, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.closed_form import Preservation, preservation, remember, solve, write
from jaxedit.errors import StatisticsError
from jaxedit.linalg import dense, frobenius, safe_norm
from jaxedit.lookup import Lead, bare_rows, lead_of, rows_of, split_pass
from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.types import Delta, EditInfo, Editor, Params, Requests, Rewrite, Site, Solved, Trace
from jaxedit.values import ValueConfig, optimise_values

State = dict[str, Preservation]


@dataclass(frozen=True)
class LocateConfig:
    """What distinguishes the locate-and-edit methods from each other."""

    layers: tuple[int, ...]  # written in this order; values are optimised at the last
    lam: float  # weight of the second moment C0 in the preservation matrix
    lam_n: float = 0.0  # ridge on the update
    ridge: float = 1.0  # 1: MEMIT; eps: EMMET; 0: constraints hold exactly
    single_ridge: float | None = None  # ridge for a single fact; None: the same
    key_mean: Literal["plain", "half"] = (
        "half"  # over contexts; half: bare prompt and prefixes weigh the same
    )
    query: Literal["mean", "bare"] = "mean"  # where the constraint is posed: at the mean key or the bare one
    memory: bool = False  # preserve the keys of all earlier edits of the sequence (K_p K_p^T)
    values: ValueConfig = field(default_factory=ValueConfig)


class Keys(NamedTuple):
    """What a layer sees at the lookup token, by fact."""

    mean: Float[Array, "B d_k"]
    bare: Float[Array, "B d_k"]


def locate_and_edit(
    model: Model, moments: Mapping[int, Float[Array, "d_k d_k"]], config: LocateConfig
) -> Editor:
    """The editor of `config`. Its state is one `Preservation` per edited matrix.

    `moments` are the uncentred second moments C0 of the keys by layer (`jaxedit.statistics`).
    Raises ConfigError for a layer out of range, StatisticsError for a missing or misshapen moment.
    """
    paths = model.edited_paths(config.layers)
    check_moments(model, moments, config.layers)

    def init(params: Params) -> State:
        return {path: preservation(moments[layer], config.lam, config.lam_n) for layer, path in paths.items()}

    def layerwise(
        params: Params, state: State, requests: Requests, rewrite: Rewrite, carry: Any
    ) -> tuple[Params, State, EditInfo, Any]:
        rows = rows_of(requests)
        split = split_pass(model.bind(params), rows, config.layers[0], config.layers[-1])
        values = optimise_values(model.bind(params), requests, rows, split, config.layers[-1], config.values)
        edited, memories = dict(params.edited), dict(state)
        deltas: dict[str, Delta] = {}
        metrics: dict[str, Array] = {}
        lead = lead_of(rows, split)
        keys = {
            layer: mean_keys(split.trace.key[layer], requests, config.key_mean) for layer in config.layers[:1]
        }
        now = current_output(split.trace, requests, config)
        for done, (layer, path) in enumerate(paths.items()):
            if done:
                decoder = model.bind(Params(edited, params.frozen))
                lead, keys[layer], now = next_layer(decoder, lead, requests, config, done)
            residual = (values.target - now) / (len(paths) - done)
            solved, memories[path] = _write(state[path], keys[layer], residual, requests.weight, config)
            deltas[path], carry = rewrite(Site(path, edited[path], solved), solved.delta, carry)
            edited[path] = edited[path] + dense(deltas[path])
            metrics[f"key_norm/{layer}"] = safe_norm(keys[layer].mean)
            metrics[f"residual_norm/{layer}"] = safe_norm(residual)
        metrics |= {
            "value_loss": values.losses,
            "value_updates": values.updates,
            "value_norm": safe_norm(values.delta),
            "origin_norm": safe_norm(values.origin),
        }
        finite = jnp.stack([jnp.isfinite(frobenius(edited[path])) for path in paths.values()]).all()
        return Params(edited, params.frozen), memories, EditInfo(deltas, metrics, finite), carry

    def update(params: Params, state: State, requests: Requests) -> tuple[Params, State, EditInfo]:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    return Editor(init, update, layerwise)


def _write(
    kept: Preservation, keys: Keys, residual: Array, weight: Array, config: LocateConfig
) -> tuple[Solved, Preservation]:
    real = weight[:, None]
    mean, query = keys.mean * real, (keys.bare if config.query == "bare" else keys.mean) * real
    solved = solve(kept, mean)
    ridge: float | Array = config.ridge
    if config.single_ridge is not None:
        ridge = jnp.where(weight.sum() > 1, config.ridge, config.single_ridge)
    delta = write(solved, query, residual * real, ridge, weight)
    return Solved(query, residual * real, delta), remember(kept, mean, solved) if config.memory else kept


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


def current_output(trace: Trace, requests: Requests, config: LocateConfig) -> Float[Array, "B d_model"]:
    """What the residual is measured against: the value as it is, at the last edited layer."""
    vectors = trace.mlp if config.values.site == "mlp" else trace.residual
    facts, n_rows, _ = requests.prefix.shape
    by_context = vectors[config.layers[-1]].astype(jnp.float32).reshape(facts, n_rows, -1)[:, : n_rows - 1]
    if config.values.site == "mlp" and config.query == "mean":
        return mean_over_contexts(by_context, config.key_mean)
    return by_context[:, 0]


def next_layer(
    decoder: Decoder, lead: Lead, requests: Requests, config: LocateConfig, done: int
) -> tuple[Lead, Keys, Float[Array, "B d_model"]]:
    """After the layer before was written: the lead at this layer's input, its keys, and the value as it is.

    Goes on from the hidden states of the layer just written; below it nothing changed.
    """
    before, layer, last = config.layers[done - 1], config.layers[done], config.layers[-1]
    hidden, _, _ = decoder.run(lead.hidden, range(before, layer), position=lead.position, mask=lead.mask)
    lead = lead._replace(hidden=hidden)
    after, trace, _ = decoder.run(
        hidden,
        range(layer, layer + 1),
        position=lead.position,
        mask=lead.mask,
        trace=("key",),
        trace_at=lead.at_lookup,
    )
    keys = mean_keys(trace.key[layer], requests, config.key_mean)
    bare = bare_rows(requests)
    h, _, _ = decoder.run(
        after[bare], range(layer + 1, last + 1), position=lead.position[bare], mask=lead.mask[bare]
    )
    return lead, keys, h[:, -1].astype(jnp.float32)


def check_moments(model: Model, moments: Mapping[int, Array], layers: tuple[int, ...]) -> None:
    """Raises StatisticsError where a layer's moment is missing or of another width."""
    width = model.config.d_ff
    for layer in layers:
        if layer not in moments:
            raise StatisticsError(
                f"no second moment for layer {layer}; there are layers {sorted(moments)}. "
                f"Collect it with jaxedit.statistics.second_moments(..., layers=({layer},))."
            )
        if moments[layer].shape != (width, width):
            raise StatisticsError(
                f"the second moment of layer {layer} is {moments[layer].shape}, the model's keys have width "
                f"{width}: it belongs to another model. Collect it anew for this one."
            )
