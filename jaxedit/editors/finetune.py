"""Fine-tuning of single MLP matrices: FT, and FT-L with an entrywise bound (Zhu et al. 2020, arXiv 2012.00363)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxedit.linalg import frobenius
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import EditInfo, Editor, Params, Requests


@dataclass(frozen=True)
class FineTuneConfig:
    """Settings of FT; `bound` makes it FT-L."""

    layers: tuple[int, ...]
    learning_rate: float = 5e-4
    steps: int = 25
    stop_loss: float = 1e-2  # a batch whose mean target NLL is below is left as it is; 0 never stops
    bound: float | None = None  # entries stay within this of the centre after every step
    centre: Literal["edit", "original"] = "edit"  # the weights before this edit, or before the sequence


class _Progress(NamedTuple):
    step: Int[Array, ""]
    weights: dict[str, Float[Array, "in out"]]
    adam: optax.OptState
    losses: Float[Array, "steps B"]
    done: Array


def fine_tune(model: Model, config: FineTuneConfig) -> Editor:
    """FT: Adam on the down-projections of `layers`, on the target tokens' mean NLL after the bare prompt.

    The state is the centre of the bound where that is the unedited model, else empty. Raises ConfigError
    for a layer out of range.
    """
    paths = model.edited_paths(config.layers)
    first = min(config.layers)
    adam = optax.adam(config.learning_rate)
    original = config.bound is not None and config.centre == "original"

    def init(params: Params) -> dict[str, Array]:
        return {path: jnp.copy(params.edited[path]) for path in paths.values()} if original else {}

    def update(params: Params, state: dict[str, Array], requests: Requests):
        start = {path: params.edited[path] for path in paths.values()}
        centre = state if original else start
        loss = _target_loss(model, params, requests, first)
        share = requests.weight / jnp.maximum(requests.weight.sum(), 1.0)

        def step(p: _Progress) -> _Progress:
            nll, pull_back = jax.vjp(loss, p.weights)
            done = jnp.sum(nll * share) < config.stop_loss
            weights, adam_state = jax.lax.cond(
                done, lambda: (p.weights, p.adam), lambda: advance(pull_back(share)[0], p)
            )
            return _Progress(p.step + 1, weights, adam_state, p.losses.at[p.step].set(nll), done)

        def advance(gradient: dict[str, Array], p: _Progress) -> tuple[dict[str, Array], optax.OptState]:
            change, adam_state = adam.update(gradient, p.adam)
            weights = optax.apply_updates(p.weights, change)
            if (bound := config.bound) is not None:
                weights = jax.tree.map(lambda w, c: c + jnp.clip(w - c, -bound, bound), weights, centre)
            return weights, adam_state

        begin = _Progress(
            step=jnp.zeros((), jnp.int32),
            weights=start,
            adam=adam.init(start),
            losses=jnp.full((config.steps, *requests.weight.shape), jnp.nan),
            done=requests.weight.sum() == 0,
        )
        end = jax.lax.while_loop(lambda p: (p.step < config.steps) & ~p.done, step, begin)
        deltas = jax.tree.map(jnp.subtract, end.weights, start)
        finite = jnp.stack([jnp.isfinite(frobenius(w)) for w in end.weights.values()]).all()
        metrics = {"loss": end.losses, "steps": end.step}
        return Params(params.edited | end.weights, params.frozen), state, EditInfo(deltas, metrics, finite)

    return Editor(init, update, remembers=original)


def _target_loss(model: Model, params: Params, requests: Requests, first: int):
    """Mean target NLL by fact, as a function of the trained matrices; runs below `first` once."""
    tokens, valid, predict_at = whole_rows(requests)
    at, mask = positions(valid), causal_mask(valid)
    decoder = model.bind(params)
    below, _, _ = decoder.run(decoder.embed(tokens, at), range(first), position=at, mask=mask)
    counted = requests.target_mask / jnp.maximum(requests.target_mask.sum(axis=-1, keepdims=True), 1)

    def loss(weights: dict[str, Array]) -> Float[Array, "B"]:
        decoder = model.bind(Params(params.edited | weights, params.frozen))
        h, _, _ = decoder.run(below, range(first, model.config.n_layers), position=at, mask=mask)
        h = jnp.take_along_axis(h, predict_at[..., None], axis=1)
        log_p = jax.nn.log_softmax(decoder.logits(h))
        nll = -jnp.take_along_axis(log_p, requests.target[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * counted, axis=-1)

    return loss
