"""Value optimisation: the vector that, written at the lookup token, makes the model predict the target.

Meng et al. 2022 (arXiv 2202.05262), equation 4, and Meng et al. 2023 (arXiv 2210.07229), equation 16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxedit.linalg import safe_norm
from jaxedit.lookup import Rows, SplitPass
from jaxedit.models.decoder import Decoder
from jaxedit.models.packing import Packing, pack, packing_of
from jaxedit.types import Requests


@dataclass(frozen=True)
class ValueConfig:
    """Settings of the optimisation; defaults are MEMIT's for GPT2-XL."""

    site: Literal["mlp", "block"] = "block"  # whose output delta is added to
    learning_rate: float = 0.5
    steps: int = 20  # N steps make at most N - 1 updates
    weight_decay: float = 0.5
    clamp: float = 0.75  # bound on ||delta|| / ||h0||
    kl: float = 0.0625
    stop_loss: float = 0.05


class Values(NamedTuple):
    """Optimised values of B facts."""

    delta: Float[Array, "B d_model"]
    origin: Float[Array, "B d_model"]  # h0: the unedited value on the bare prompt
    losses: Float[Array, "steps B"]  # NaN where a step was not taken
    updates: Int[Array, "B"]

    @property
    def target(self) -> Float[Array, "B d_model"]:
        """z = h0 + delta."""
        return self.origin + self.delta


class _Progress(NamedTuple):
    step: Int[Array, ""]
    delta: Float[Array, "B d_model"]
    adam: optax.OptState
    done: Bool[Array, "B"]
    losses: Float[Array, "steps B"]
    updates: Int[Array, "B"]


Loss = Callable[[Float[Array, "B d_model"]], Float[Array, "B"]]


def optimise_values(
    decoder: Decoder, requests: Requests, rows: Rows, split: SplitPass, layer: int, config: ValueConfig
) -> Values:
    """Minimises the loss of `value_loss` over delta for every fact, as one compiled loop.

    A step is: loss; stop a fact whose loss is below `stop_loss`; gradient; Adam; projection to
    `||delta|| <= clamp ||h0||`. Facts that stopped keep their delta; padding facts never start.

    The loop is compiled for a few sizes, and the smallest that holds this batch's tokens runs: one long
    fact does not make all others as dear as itself.
    """
    origin = lookup_value(split, requests, layer, config.site)
    active = requests.weight > 0

    def at_size(size: Size) -> Callable[[], Values]:
        def optimise() -> Values:
            loss = value_loss(decoder, requests, rows, split, layer, origin, config, size)
            return minimise(loss, origin, active, config)

        return optimise

    sizes = loop_sizes(requests)
    tokens, reads = _tail_tokens(requests).sum(), _target_tokens(requests).sum()
    too_small = [(size.tokens < tokens) | (size.reads < reads) for size in sizes[:-1]]
    return jax.lax.switch(sum(too_small, start=jnp.int32(0)), [at_size(size) for size in sizes])


class Size(NamedTuple):
    """How many tail tokens, and how many predictions of target tokens, a loop is compiled for."""

    tokens: int
    reads: int


def loop_sizes(requests: Requests) -> list[Size]:
    """Shares of all that the request arrays can hold, ascending, each once; each costs a compilation."""
    tokens, reads = requests.tail.size, requests.predict_at.size
    return sorted({Size(-(-tokens * part // 8), -(-reads * part // 8)) for part in (3, 5, 8)})


def _tail_tokens(requests: Requests) -> Bool[Array, "B R S"]:
    return requests.tail_mask & (requests.weight > 0)[:, None, None]


def _target_tokens(requests: Requests) -> Bool[Array, "B C T"]:
    counted = requests.target_mask & (requests.weight > 0)[:, None]
    return jnp.broadcast_to(counted[:, None], requests.predict_at.shape)


class Reads(NamedTuple):
    """The predictions that the loss is made of, packed: Q places."""

    packing: Packing  # of the packed tail tokens, [M] -> [Q]
    label: Int[Array, "Q"]
    share: Float[Array, "B Q"]  # of every prediction in the mean NLL of its fact


def reads_of(requests: Requests, tokens: Packing, reads: int) -> Reads:
    """Where targets are predicted, what they are, and what they count: equally, within a fact."""
    facts = requests.tail.shape[0]
    asked = _target_tokens(requests)
    fact, context, _ = jnp.indices(asked.shape, sparse=True)
    # Padding targets are sent out of range, and so dropped.
    at = jnp.where(asked, requests.predict_at, requests.tail.shape[-1])
    label = jnp.broadcast_to(requests.target[:, None], asked.shape)
    here = jnp.zeros(requests.tail.shape, bool).at[fact, context, at].set(True, mode="drop")
    labels = jnp.zeros(requests.tail.shape, jnp.int32).at[fact, context, at].set(label, mode="drop")
    of_fact = jnp.broadcast_to(jnp.arange(facts)[:, None, None], here.shape)

    def packed(x: Array, packing: Packing) -> Array:
        return pack(x.reshape(*packing.valid.shape, 1), packing)[:, 0]

    here, labels, of_fact = (packed(x, tokens) for x in (here, labels, of_fact))
    packing = packing_of(here, reads)
    owner = packed(of_fact, packing)
    owned = (owner == jnp.arange(facts)[:, None]) & packing.filled
    share = owned / jnp.maximum(owned.sum(axis=-1, keepdims=True), 1)
    return Reads(packing, packed(labels, packing), share)


def lookup_value(split: SplitPass, requests: Requests, layer: int, site: str) -> Float[Array, "B d_model"]:
    """h0: output of the layer's MLP or block at the lookup token of the bare prompt, float32."""
    vectors = split.trace.mlp[layer] if site == "mlp" else split.trace.residual[layer]
    facts, rows, _ = requests.prefix.shape
    return vectors.reshape(facts, rows, -1)[:, 0].astype(jnp.float32)


def value_loss(
    decoder: Decoder,
    requests: Requests,
    rows: Rows,
    split: SplitPass,
    layer: int,
    origin: Float[Array, "B d_model"],
    config: ValueConfig,
    size: Size | None = None,
) -> Loss:
    """The objective as a function of delta alone, by fact:

    `mean_i mean_t -log p(target_t | context_i, target_<t) + kl * KL(p_delta || p_0) + wd * ||delta|| / ||h0||^2`.

    Touches only real tail tokens, only layers above `layer`, and the vocabulary only where something is read.
    `size` must hold the batch's tokens; without one everything fits.
    """
    facts, n_rows, _ = requests.prefix.shape
    size = size or loop_sizes(requests)[-1]
    above = range(layer + 1, decoder.config.n_layers)
    scale = jnp.maximum(jnp.square(safe_norm(origin)), jnp.finfo(jnp.float32).tiny)
    tokens = packing_of(_tail_tokens(requests).reshape(rows.tail.shape), size.tokens)
    reads = reads_of(requests, tokens, size.reads)
    at_lookup = tokens.place[:, 0]
    start = pack(split.tail_out, tokens)
    original = kl_row(decoder, rows, split, above, n_rows)

    def read(delta: Float[Array, "B d_model"]) -> tuple[Float[Array, "Q V"], Float[Array, "B V"]]:
        pushed = start.at[at_lookup].add(jnp.repeat(delta, n_rows, axis=0).astype(start.dtype))
        h, _, _ = decoder.run(
            pushed,
            above,
            position=rows.tail_position,
            mask=rows.tail_mask,
            memory=split.memory,
            packing=tokens,
        )
        essence = h[at_lookup[n_rows - 1 :: n_rows]]
        log_p = jax.nn.log_softmax(decoder.logits(jnp.concatenate([pack(h, reads.packing), essence])))
        return log_p[:-facts], log_p[-facts:]

    def loss(delta: Float[Array, "B d_model"]) -> Float[Array, "B"]:
        log_p, essence = read(delta)
        nll = -jnp.take_along_axis(log_p, reads.label[:, None], axis=-1)[:, 0]
        nll = jnp.matmul(reads.share, nll, precision="highest")
        divergence = jnp.sum(jnp.exp(essence) * (essence - original), axis=-1)
        divergence = jnp.where(
            requests.weight > 0, divergence, 0.0
        )  # padding facts have no place of their own
        return nll + config.kl * divergence + config.weight_decay * safe_norm(delta) / scale

    return loss


def kl_row(decoder: Decoder, rows: Rows, split: SplitPass, above: range, n_rows: int) -> Float[Array, "B V"]:
    """log p_0 at the lookup token of "{subject} is a" in the model as it stands."""
    last = jnp.arange(n_rows - 1, split.tail_out.shape[0], n_rows)
    chosen = rows.take(last)
    memory = {layer: type(m)(m.key[last], m.value[last]) for layer, m in split.memory.items()}
    width = chosen.prefix.shape[1] + 1
    h, _, _ = decoder.run(
        split.tail_out[last, :1],
        above,
        position=chosen.tail_position[:, :1],
        mask=chosen.tail_mask[:, :1, :width],
        memory=memory,
    )
    return jax.nn.log_softmax(decoder.logits(h[:, 0]))


def minimise(
    loss: Loss, origin: Float[Array, "B d"], active: Bool[Array, "B"], config: ValueConfig
) -> Values:
    """The loop of `optimise_values` for any per-fact loss, delta starting at zero."""
    adam = optax.adam(config.learning_rate)
    bound = config.clamp * safe_norm(origin)
    start = jnp.zeros_like(origin)

    def keep_going(p: _Progress) -> Bool[Array, ""]:
        return (p.step < config.steps) & ~p.done.all()

    def step(p: _Progress) -> _Progress:
        value, pull_back = jax.vjp(loss, p.delta)
        losses = p.losses.at[p.step].set(jnp.where(p.done, jnp.nan, value))
        done = p.done | (value < config.stop_loss) | (p.step == config.steps - 1)
        delta, adam_state = jax.lax.cond(
            done.all(), lambda: (p.delta, p.adam), lambda: advance(pull_back(jnp.ones_like(value))[0], p)
        )
        delta = jnp.where(done[:, None], p.delta, delta)
        return _Progress(p.step + 1, delta, adam_state, done, losses, p.updates + ~done)

    def advance(gradient: Array, p: _Progress) -> tuple[Array, optax.OptState]:
        change, adam_state = adam.update(gradient, p.adam)
        delta = p.delta + change
        shrink = jnp.minimum(1.0, bound / jnp.maximum(safe_norm(delta), jnp.finfo(jnp.float32).tiny))
        return delta * shrink[:, None], adam_state

    facts = origin.shape[0]
    first = _Progress(
        step=jnp.zeros((), jnp.int32),
        delta=start,
        adam=adam.init(start),
        done=~active,
        losses=jnp.full((config.steps, facts), jnp.nan),
        updates=jnp.zeros((facts,), jnp.int32),
    )
    last = jax.lax.while_loop(keep_going, step, first)
    return Values(last.delta, origin, last.losses, last.updates)
