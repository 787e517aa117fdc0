"""Value optimisation: the vector that, written at the lookup token, makes the model predict the target.

Meng et al. 2022 (arXiv 2202.05262), equation 4, and Meng et al. 2023 (arXiv 2210.07229), equation 16; with
most-probable early stopping (Gupta et al. 2025, arXiv 2502.01636) and PMET's pair of vectors (Li et al. 2023,
arXiv 2308.08742) as options.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxedit.batching import all_of, largest
from jaxedit.linalg import safe_norm
from jaxedit.lookup import Rows, SplitPass
from jaxedit.models.decoder import Decoder, Tap
from jaxedit.models.packing import Packing, Size, pack, packing_of
from jaxedit.packed import asked, reads_of, real_tail, sizes_of
from jaxedit.types import Requests


@dataclass(frozen=True)
class ValueConfig:
    """Settings of the optimisation; defaults are MEMIT's for GPT2-XL."""

    site: Literal["mlp", "block", "attention+mlp"] = (
        "block"  # whose output delta is added to (see `jaxedit.types.Trace`); PMET: one to each
    )
    learning_rate: float = 0.5
    steps: int = 20  # N steps make at most N - 1 updates
    weight_decay: float = 0.5
    clamp: float = 0.75  # bound on ||delta|| / ||h0||
    kl: float = 0.0625
    stop_loss: float = 0.05
    # Of a batch's room: sizes of the loop beside the whole. Without any, prefixes that rows share run for each too.
    shares: tuple[float, ...] = (0.3, 0.4, 0.55)
    # The same in tokens and predictions, where a run's facts are known: instead of shares.
    sizes: tuple[Size, ...] = ()
    patience: int | None = (
        None  # MPES: stop once the target was most probable at this many steps; None: never
    )
    reference_quirks: bool = False  # MPES as first released: see `most_probable`


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
    hits: Int[Array, "B"]  # steps at which the target was the most probable answer


Loss = Callable[[Float[Array, "B *sites d_model"]], Float[Array, "B"]]
Objective = Callable[[Float[Array, "B *sites d_model"]], tuple[Float[Array, "B"], Bool[Array, "B"]]]
"""Loss by fact, and whether its target is the most probable answer. Two sites make an axis of delta."""


class Stage(NamedTuple):
    """A stretch of the loop, for the facts that run: those that are not done yet."""

    objective: Callable[[Bool[Array, "B"]], Objective]
    """Made once, when the stretch begins; what it says of facts that are done then is not used."""
    needed: Callable[[Bool[Array, "B"]], Bool[Array, ""]]
    """Whether they need this stage still, and not the next."""


Optimise = Callable[[Decoder, Requests, Rows, SplitPass, int, ValueConfig], Values]
"""How an editor comes to its values: `optimise_values`, or values known from elsewhere."""


def optimise_values(
    decoder: Decoder, requests: Requests, rows: Rows, split: SplitPass, layer: int, config: ValueConfig
) -> Values:
    """Minimises the loss of `value_loss` over delta for every fact, as one compiled loop.

    A step is: loss; stop a fact whose loss is below `stop_loss`, or whose target has been the most probable
    answer at `patience` steps, this one counted; gradient; Adam; projection to `||delta|| <= clamp ||h0||`.
    Facts that stopped keep their delta; padding facts never start. Of two sites the MLP's vector is
    returned, the one that is written.

    The loop is compiled for a few sizes, and runs at the smallest that holds the tokens of the facts that are
    not done yet: one long fact does not make all others as dear as itself, and done ones cost nothing.
    """
    origin = lookup_value(split, requests, layer, config.site)
    _, n_rows, _ = requests.prefix.shape
    original = kl_row(decoder, rows, split, range(layer + 1, decoder.config.n_layers), n_rows)

    def of(running: Bool[Array, "B"]) -> Requests:
        return requests._replace(weight=jnp.where(running, requests.weight, 0.0))

    def stage(size: Size, smaller: Size | None) -> Stage:
        def objective(running: Bool[Array, "B"]) -> Objective:
            return value_objective(
                decoder, of(running), rows, split, layer, origin, config, size=size, original=original
            )

        def needed(running: Bool[Array, "B"]) -> Bool[Array, ""]:
            if smaller is None:
                return jnp.bool_(True)
            tokens, reads = real_tail(of(running)).sum(), asked(of(running)).sum()
            return (largest(tokens) > smaller.tokens) | (largest(reads) > smaller.reads)

        return Stage(objective, needed)

    sizes = sizes_of(requests, config.shares, config.sizes)[::-1]
    stages = [stage(size, smaller) for size, smaller in itertools.zip_longest(sizes, sizes[1:])]
    values = minimise_by_stages(stages, origin, requests.weight > 0, config)
    if origin.ndim == 2:
        return values
    return values._replace(delta=values.delta[:, -1], origin=values.origin[:, -1])


def lookup_value(
    split: SplitPass, requests: Requests, layer: int, site: str
) -> Float[Array, "B *sites d_model"]:
    """h0: output of the layer's MLP or block at the lookup token of the bare prompt, float32.

    For "attention+mlp" both outputs, stacked in this order.
    """
    trace = split.trace
    if site == "attention+mlp":
        both = [trace.attention[layer], trace.mlp[layer]]
    else:
        both = [trace.mlp[layer] if site == "mlp" else trace.residual[layer]]
    facts, rows, _ = requests.prefix.shape
    origins = [vectors.reshape(facts, rows, -1)[:, 0].astype(jnp.float32) for vectors in both]
    return origins[0] if len(origins) == 1 else jnp.stack(origins, axis=1)


def value_loss(
    decoder: Decoder,
    requests: Requests,
    rows: Rows,
    split: SplitPass,
    layer: int,
    origin: Float[Array, "B *sites d_model"],
    config: ValueConfig,
) -> Loss:
    """The loss of `value_objective` alone, with room for everything."""
    objective = value_objective(decoder, requests, rows, split, layer, origin, config)
    return lambda delta: objective(delta)[0]


def value_objective(
    decoder: Decoder,
    requests: Requests,
    rows: Rows,
    split: SplitPass,
    layer: int,
    origin: Float[Array, "B *sites d_model"],
    config: ValueConfig,
    size: Size | None = None,
    original: Float[Array, "B V"] | None = None,
) -> Objective:
    """What is minimised, as a function of delta alone, by fact:

    `mean_i mean_t -log p(target_t | context_i, target_<t) + kl * KL(p_delta || p_0) + wd * ||delta|| / ||h0||^2`.

    Touches only real tail tokens, only layers above `layer`, and the vocabulary only where something is read.
    `size` must hold the batch's tokens; without one everything fits. `original` is `kl_row`, where it is known.
    """
    facts, n_rows, _ = requests.prefix.shape
    size = size or sizes_of(requests, ())[-1]
    above = range(layer + 1, decoder.config.n_layers)
    scale = jnp.maximum(jnp.square(safe_norm(origin)), jnp.finfo(jnp.float32).tiny)
    tokens = packing_of(real_tail(requests).reshape(rows.tail.shape), size.tokens)
    reads = reads_of(requests, tokens, size.reads)
    at_lookup = tokens.place[:, 0]
    pushed = placed(decoder, rows, split, layer, config.site, tokens)
    before = kl_row(decoder, rows, split, above, n_rows) if original is None else original

    def read(delta: Array) -> Float[Array, "Q+B V"]:
        h, _, _ = decoder.run(
            pushed(delta),
            above,
            position=rows.tail_position,
            mask=rows.tail_mask,
            memory=split.memory,
            packing=tokens,
        )
        essence = h[at_lookup[n_rows - 1 :: n_rows]]
        return decoder.logits(jnp.concatenate([pack(h, reads.packing), essence]))

    def objective(delta: Array) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
        # log p of the labels alone: a log-softmax is one more array of all predictions, and slows their product.
        logits = read(delta)
        total = jax.nn.logsumexp(logits, axis=-1)
        predicted, essence = logits[:-facts], logits[-facts:] - total[-facts:, None]
        nll = total[:-facts] - jnp.take_along_axis(predicted, reads.label[:, None], axis=-1)[:, 0]
        nll = jnp.matmul(reads.share, nll, precision="highest")
        divergence = jnp.sum(jnp.exp(essence) * (essence - before), axis=-1)
        # Padding and done facts have no place of their own: what is read for them is another fact's.
        divergence = jnp.where(requests.weight > 0, divergence, 0.0)
        decay = safe_norm(delta) / scale
        decay = decay if decay.ndim == 1 else decay.sum(axis=-1)
        loss = nll + config.kl * divergence + config.weight_decay * decay
        if config.patience is None:
            return loss, jnp.zeros((facts,), bool)
        right = reads.by_target(predicted.argmax(axis=-1) == reads.label, requests, tokens)
        return loss, most_probable(right, requests, config.reference_quirks)

    return objective


def placed(
    decoder: Decoder, rows: Rows, split: SplitPass, layer: int, site: str, tokens: Packing
) -> Callable[[Array], Float[Array, "M d_model"]]:
    """The packed tails after `layer` as a function of delta, added at every row's lookup token.

    Added to the MLP's or the block's output, what the stream gains is known, and nothing below runs again.
    Added to the attention's too, the layer's MLP may see it, so that the layer runs anew.
    """
    n_rows = rows.tail.shape[0]
    if site != "attention+mlp":
        start, gain = pack(split.tail_out, tokens), gained(decoder, split, layer, site)
        # Facts that are done have no place: theirs is sent out of range, and so dropped.
        at_lookup = jnp.where(tokens.valid[:, 0], tokens.place[:, 0], start.shape[0])

        def push(delta: Float[Array, "B d_model"]) -> Float[Array, "M d_model"]:
            each = gain(jnp.repeat(delta, n_rows // delta.shape[0], axis=0))
            return start.at[at_lookup].add(each, mode="drop")

        return push
    run = functools.partial(
        decoder.run, position=rows.tail_position, mask=rows.tail_mask, memory=split.memory
    )
    before, _, _ = run(split.tail_in, range(min(split.trace.key), layer))
    first_token = jnp.zeros((n_rows,), jnp.int32)

    def rerun(delta: Float[Array, "B 2 d_model"]) -> Float[Array, "M d_model"]:
        both = jnp.repeat(delta, n_rows // delta.shape[0], axis=0)
        taps = [Tap(layer, name, both[:, i], first_token) for i, name in enumerate(("attention", "mlp"))]
        return pack(run(before, range(layer, layer + 1), tap=taps)[0], tokens)

    return rerun


def gained(
    decoder: Decoder, split: SplitPass, layer: int, site: str
) -> Callable[[Float[Array, "N d_model"]], Float[Array, "N d_model"]]:
    """What the residual stream gains at the lookup token from delta at the MLP's or the block's output.

    Delta itself, but for an MLP whose output is normalised: `norm(m + delta) - norm(m)`.
    """
    dtype = split.tail_out.dtype
    if site == "block" or not decoder.config.post_norm:
        return lambda delta: delta.astype(dtype)
    before, added = split.trace.mlp[layer][:, 0], decoder.layers[layer].mlp_added
    return lambda delta: added(before + delta.astype(dtype)) - added(before)


def most_probable(
    right: Bool[Array, "B C T"], requests: Requests, reference_quirks: bool = False
) -> Bool[Array, "B"]:
    """MPES: whether the target is the arg-max at all its tokens in every context, the bare prompt included.

    `right` tells it for every context and token. The first release left the bare prompt out and compared the
    number of right tokens with the constant 5 (`reference_quirks`): with five prefixes and targets of two tokens a
    step with exactly 5 of the 10 right counts, and one with all of them right does not, so that it can stop at half
    a target.
    """
    real = requests.target_mask[:, None]
    if reference_quirks:
        return (right & real)[:, 1:].sum(axis=(1, 2)) == 5
    return (right | ~real).all(axis=(1, 2))


def kl_row(decoder: Decoder, rows: Rows, split: SplitPass, above: range, n_rows: int) -> Float[Array, "B V"]:
    """log p_0 at the lookup token of "{subject} is a" in the model as it stands."""
    last = jnp.arange(n_rows - 1, split.tail_out.shape[0], n_rows)
    chosen = rows.take(last)
    memory = jax.tree.map(lambda x: x[last], split.memory)
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
    objective: Objective, origin: Float[Array, "B *sites d"], active: Bool[Array, "B"], config: ValueConfig
) -> Values:
    """The loop of `optimise_values` for any objective by fact, delta starting at zero."""
    return minimise_by_stages([Stage(lambda _: objective, lambda _: jnp.bool_(True))], origin, active, config)


def minimise_by_stages(
    stages: Sequence[Stage],
    origin: Float[Array, "B *sites d"],
    active: Bool[Array, "B"],
    config: ValueConfig,
) -> Values:
    """`minimise` one stage after the other; the last must be needed as long as a fact runs."""
    facts = origin.shape[0]
    adam, start = optax.adam(config.learning_rate), jnp.zeros_like(origin)
    p = _Progress(
        step=jnp.zeros((), jnp.int32),
        delta=start,
        adam=adam.init(start),
        done=~active,
        losses=jnp.full((config.steps, facts), jnp.nan),
        updates=jnp.zeros((facts,), jnp.int32),
        hits=jnp.zeros((facts,), jnp.int32),
    )
    for stage in stages:
        p = _stretch(stage, p, origin, adam, config)
    return Values(p.delta, origin, p.losses, p.updates)


def _stretch(
    stage: Stage,
    first: _Progress,
    origin: Float[Array, "B *sites d"],
    adam: optax.GradientTransformation,
    config: ValueConfig,
) -> _Progress:
    """The steps of one stage."""
    objective = stage.objective(~first.done)
    bound = config.clamp * safe_norm(origin)
    patience = config.steps + 1 if config.patience is None else config.patience

    def keep_going(p: _Progress) -> Bool[Array, ""]:
        return (p.step < config.steps) & ~all_of(p.done) & stage.needed(~p.done)

    def step(p: _Progress) -> _Progress:
        value, pull_back, hit = jax.vjp(objective, p.delta, has_aux=True)
        losses = p.losses.at[p.step].set(jnp.where(p.done, jnp.nan, value))
        hits = p.hits + hit
        done = p.done | (value < config.stop_loss) | (hits >= patience) | (p.step == config.steps - 1)
        delta, adam_state = jax.lax.cond(
            all_of(done), lambda: (p.delta, p.adam), lambda: advance(pull_back(jnp.ones_like(value))[0], p)
        )
        delta = jnp.where(done.reshape(-1, *[1] * (delta.ndim - 1)), p.delta, delta)
        return _Progress(p.step + 1, delta, adam_state, done, losses, p.updates + ~done, hits)

    def advance(gradient: Array, p: _Progress) -> tuple[Array, optax.OptState]:
        change, adam_state = adam.update(gradient, p.adam)
        delta = p.delta + change
        shrink = jnp.minimum(1.0, bound / jnp.maximum(safe_norm(delta), jnp.finfo(jnp.float32).tiny))
        return delta * shrink[..., None], adam_state

    return jax.lax.while_loop(keep_going, step, first)
