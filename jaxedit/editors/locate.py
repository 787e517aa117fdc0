"""Locate-and-edit as one editor: optimise values, then write them at their keys, layer by layer."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.config import LocateConfig
from jaxedit.editors.moment_checks import check_invertible, check_moments
from jaxedit.editors.nas import anchored
from jaxedit.editors.reading import Reading, first_reading, keys_after, mean_keys, next_reading, value_now
from jaxedit.editors.solver import Batch, Solver, ridge
from jaxedit.linalg import all_finite, applied, double, safe_norm
from jaxedit.lookup import Lead, lead_of, prefix_shares, rows_of, split_pass
from jaxedit.models.model import Model
from jaxedit.types import Delta, EditInfo, Editor, Params, Requests, Rewrite, Site, Solved
from jaxedit.values import Optimise, Values, optimise_values

__all__ = ["LocateConfig", "locate_and_edit", "mean_keys"]

State = dict[str, Any]
"""By path what the solver remembers of that matrix; under `ANCHOR` the norms of NAS by span, where they are used."""

ANCHOR = "anchor"


def locate_and_edit(
    model: Model,
    moments: Mapping[int, Float[Array, "d_k d_k"]],
    config: LocateConfig,
    solver: Solver | None = None,
    optimise: Optimise = optimise_values,
) -> Editor:
    """The editor of `config`; `solver` is how one matrix is written, by default the ridge of `closed_form`.

    `moments` are the uncentred second moments C0 of the keys by layer (`jaxedit.statistics`). Where a norm
    follows the MLP, the method is `config.fitted` to that.
    Raises ConfigError for a layer out of range, StatisticsError for a missing or misshapen moment, and at `init`,
    if that is not traced, for one that the solver cannot invert.
    """
    paths = model.edited_paths(config.layers)
    check_moments(model, moments, config.layers)
    config = config.fitted(model.config)
    solver = ridge(config) if solver is None else solver
    spans = [config.layers] if config.values_at == "last" else [(layer,) for layer in config.layers]

    def init(params: Params) -> State:
        state: State = {}
        for layer, path in paths.items():
            state[path] = solver.init(moments[layer], params.edited[path])
            check_invertible(state[path], moments[layer], layer)
        if config.anchor is None:
            return state
        return state | {ANCHOR: jnp.full(len(spans), config.anchor, jnp.float32)}

    def layerwise(
        params: Params, state: State, requests: Requests, rewrite: Rewrite, carry: Any
    ) -> tuple[Params, State, EditInfo, Any]:
        now, state = params, dict(state)
        deltas: dict[str, Delta] = {}
        metrics: dict[str, Array] = {}
        keys: dict[int, Array] = {}
        leads: list[Lead] = []
        for span in spans:
            one = write_span(model, config, solver, optimise, now, state, requests, span, rewrite, carry)
            now, state, carry = one.params, state | one.state, one.carry
            deltas, keys = deltas | one.deltas, keys | one.keys
            suffix = f"/{span[0]}" if len(spans) > 1 else ""
            metrics |= one.metrics | {name + suffix: value for name, value in value_metrics(one.values)}
            leads.append(one.lead)
        if config.memory:
            if config.memory_keys == "recomputed":
                keys = keys_after(model.bind(now), leads[0], requests, config)
            for layer, path in paths.items():
                real = keys[layer] * requests.weight[:, None]
                state[path] = solver.remember(state[path], now.edited[path], real, requests.weight)
        finite = all_finite(now.edited[path] for path in paths.values())
        return now, state, EditInfo(deltas, metrics, finite), carry

    def update(params: Params, state: State, requests: Requests) -> tuple[Params, State, EditInfo]:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    remembers = config.memory or config.anchor is not None
    return Editor(init, update, remembers=remembers, layerwise=layerwise)


class Written(NamedTuple):
    """What one span of layers was given."""

    params: Params
    state: State  # what of it changed
    deltas: dict[str, Delta]
    keys: dict[int, Float[Array, "B d_k"]]
    values: Values
    metrics: dict[str, Array]
    lead: Lead  # at the input of the span's first layer
    carry: Any  # of `rewrite`


class Found(NamedTuple):
    """What is known of B facts before any matrix is written."""

    values: Values  # `losses` turned while placed: all leaves lead with the facts or their rows
    readings: dict[int, Reading]  # by layer
    mlp: Float[Array, "B d_model"]  # the last layer's output for the bare prompt
    lead: Lead


def write_span(
    model: Model,
    config: LocateConfig,
    solver: Solver,
    optimise: Optimise,
    params: Params,
    state: State,
    requests: Requests,
    layers: tuple[int, ...],
    rewrite: Rewrite,
    carry: Any,
) -> Written:
    """Optimises values at the last of these layers and writes them into all, each on what was just written.

    A solver with an original reads keys and values from the unedited matrices instead.
    """
    paths = model.edited_paths(layers)
    sharing = config.layers if config.values_at == "shared" else layers
    source = params
    if solver.original is not None:
        whole = model.edited_paths(config.layers).values()
        unedited = {path: solver.original(state[path]) for path in whole}
        source = Params(params.edited | unedited, params.frozen)
    read_at = layers if solver.original is not None else layers[:1]
    found = find_values(model, config, optimise, source, requests, layers, read_at)
    values, lead, changed = found.values, found.lead, {}
    target = values.target
    if config.anchor is not None:
        number, anchors = config.layers.index(layers[0]), state[ANCHOR]  # of the span, which is all or one
        target, anchor = anchored(values, found.mlp, anchors[number], requests.weight)
        changed = {ANCHOR: anchors.at[number].set(anchor)}

    def move_on(params: Params, facts: tuple[Lead, Requests], done: int) -> tuple[Lead, Reading]:
        lead, requests = facts
        return next_reading(model.bind(params), lead, requests, config, layers, done)

    edited, real = dict(params.edited), requests.weight[:, None]
    deltas: dict[str, Delta] = {}
    metrics: dict[str, Array] = {}
    keys: dict[int, Array] = {}
    for done, (layer, path) in enumerate(paths.items()):
        if layer in found.readings:
            reading = found.readings[layer]
        else:
            work = functools.partial(move_on, done=done)
            lead, reading = model.placement.run(work, Params(edited, params.frozen), (lead, requests))
            reading = model.placement.gather(reading)
        left = len(sharing) if solver.original is not None else len(sharing) - sharing.index(layer)
        residual = spread(target - reading.now, left, layer == sharing[-1], config.spread)
        query = reading.keys.bare if config.query == "bare" else reading.keys.mean
        batch = Batch(reading.keys.mean * real, query * real, residual * real, requests.weight)
        if solver.original is not None:
            batch = still_missing(batch, edited[path], solver.original(state[path]))
        solved = Solved(batch.query, batch.residual, solver.write(state[path], edited[path], batch))
        delta, carry = rewrite(Site(path, edited[path], solved), solved.delta, carry)
        edited[path], deltas[path] = applied(edited[path], delta)
        keys[layer] = reading.keys.mean
        metrics[f"key_norm/{layer}"] = safe_norm(reading.keys.mean)
        metrics[f"residual_norm/{layer}"] = safe_norm(residual)
    return Written(Params(edited, params.frozen), changed, deltas, keys, values, metrics, found.lead, carry)


def find_values(
    model: Model,
    config: LocateConfig,
    optimise: Optimise,
    source: Params,
    requests: Requests,
    layers: tuple[int, ...],
    read_at: tuple[int, ...],
) -> Found:
    """Optimises values at the last of these layers; keys and outputs of those to read at, all of `source`."""

    def find(source: Params, requests: Requests) -> Found:
        rows, decoder = rows_of(requests), model.bind(source)
        shares = prefix_shares(requests) if config.values.shares else ()
        split = split_pass(decoder, rows, layers[0], layers[-1], shares)
        values = optimise(decoder, requests, rows, split, layers[-1], config.values)
        readings = {layer: first_reading(split.trace, requests, config, layers, layer) for layer in read_at}
        mlp = value_now(split.trace.mlp[layers[-1]], requests, "bare")
        return Found(values._replace(losses=values.losses.T), readings, mlp, lead_of(rows, split))

    found = model.placement.run(find, source, requests)
    values, readings, mlp = model.placement.gather(found[:3])
    return Found(values._replace(losses=values.losses.T), readings, mlp, found.lead)


def still_missing(batch: Batch, weight: Float[Array, "d_k d_v"], original: Float[Array, "d_k d_v"]) -> Batch:
    """The batch with residuals of the matrix as it stands, given those of the original one."""
    with jax.enable_x64(True):
        given = jnp.matmul(double(batch.query), double(weight) - double(original), precision="highest")
        return batch._replace(residual=(double(batch.residual) - given).astype(jnp.float32))


def spread(missing: Float[Array, "B d_v"], left: int, last: bool, how: str) -> Float[Array, "B d_v"]:
    """This layer's share of what is missing, `left` layers being left with it.

    Where what is missing is not measured anew after every layer, `left` is the number of all layers.
    """
    if how == "last" and not last:
        return jnp.zeros_like(missing)
    divisor = {"even": left, "sqrt": left**0.5, "last": 1}[how]
    return missing / divisor


def value_metrics(values: Values) -> Iterable[tuple[str, Array]]:
    """What the optimisation did, by fact."""
    yield "value_loss", values.losses
    yield "value_updates", values.updates
    yield "value_norm", safe_norm(values.delta)
    yield "origin_norm", safe_norm(values.origin)
