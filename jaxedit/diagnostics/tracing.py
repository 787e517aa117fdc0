"""Causal tracing: which states, by layer and token, carry the recall of a fact.

Meng et al. 2022 (arXiv 2202.05262), section 2. A clean run reads the prompt. A corrupted run reads it with
noise on the subject's embeddings. In a restored run some states of the corrupted one are put back to what
they are in the clean one; the indirect effect is how much that raises the probability of the object.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.errors import ConfigError
from jaxedit.models.attention import Memory
from jaxedit.models.decoder import Decoder, Patch, causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import LAST, LAST_SUBJECT, Params, TracePrompts

Site = Literal["residual", "mlp", "attention"]
KINDS = LAST + 1
WINDOW = {"residual": 1, "mlp": 10, "attention": 10}  # section 2.2: single states, or modules of ten layers


@dataclass(frozen=True)
class TraceConfig:
    """What a restored run puts back."""

    site: Site = "mlp"  # the residual stream after a block, or the output of its MLP or attention
    window: int | None = None  # layers put back together, around every layer in turn; None: the paper's
    at_once: int | None = None  # noise samples run together, a divisor of their number; None: all of them


class Effects(NamedTuple):
    """Probabilities of the objects of B facts: clean, and means over the noise samples."""

    clean: Float[Array, "B"]
    knows: Bool[Array, "B"]  # whether the object is the arg-max of the clean run
    corrupted: Float[Array, "B"]
    restored: Float[Array, "B M L"]  # at choice m of tokens, layers around l put back

    @property
    def total(self) -> Float[Array, "B"]:
        """TE: what the noise takes away."""
        return self.clean - self.corrupted

    @property
    def indirect(self) -> Float[Array, "B M L"]:
        """IE: what putting the states back gives."""
        return self.restored - self.corrupted[:, None, None]


class Recall(NamedTuple):
    """What one forward pass says of B prompts."""

    probability: Float[Array, "B"]  # of the object's first token
    knows: Bool[Array, "B"]  # whether that is the arg-max


class _Runs(NamedTuple):
    """The clean run of a fact (row 0) and its K corrupted ones, on the tail."""

    inputs: list[Float[Array, "1+K S d_model"]]  # of every layer
    site: dict[int, Float[Array, "1+K S d_model"]]  # vectors of the traced site
    logits: Float[Array, "1+K vocab"]  # after the prompt's last token


class _Fact(NamedTuple):
    """One prompt with its prefix run: what every run of its tail shares."""

    position: Int[Array, "1 S"]
    mask: Bool[Array, "1 S P+S"]
    memory: dict[int, Memory]  # of the prefix, one row
    last: Int[Array, ""]  # index of the prompt's last token in the tail


def subject_tokens(prompts: TracePrompts) -> Bool[Array, "B S"]:
    """The subject's tokens: those that noise is put on."""
    return (prompts.kind >= 0) & (prompts.kind <= LAST_SUBJECT)


def each_token(prompts: TracePrompts) -> Bool[Array, "B S S"]:
    """Choices of tokens to put back: every token from the subject's first on, one at a time."""
    return jnp.eye(prompts.tail.shape[-1], dtype=bool) & prompts.tail_mask[:, :, None]


def last_subject_token(prompts: TracePrompts) -> Bool[Array, "B 1 S"]:
    """The choice of the subject's last token only."""
    return (prompts.kind == LAST_SUBJECT)[:, None, :]


def noise_scale(
    model: Model, params: Params | dict[str, Array], prompts: TracePrompts, times: float = 3.0
) -> Float[Array, ""]:
    """`times` the standard deviation of all entries of the subjects' token embeddings, over all facts.

    Embeddings are taken as they enter the residual stream, where the noise is added.
    """
    vectors = model.bind(params).vectors(jnp.asarray(prompts.tail)).astype(jnp.float32)
    chosen = (subject_tokens(prompts) & (prompts.weight[:, None] > 0))[..., None]
    return times * jnp.std(vectors, where=chosen)


def subject_noise(
    key: Array, prompts: TracePrompts, samples: int, width: int, scale: float | Float[Array, ""]
) -> Float[Array, "B K S d_model"]:
    """K Gaussian draws of standard deviation `scale` on the subject's tokens, zero elsewhere.

    A draw depends on the key, the fact's `case`, the sample and the token's place in the tail only: not on
    what else is in the batch, nor on padding.
    """
    ladders = (prompts.case, jnp.arange(samples), jnp.arange(prompts.tail.shape[-1]))

    def draw(case: Array, sample: Array, token: Array) -> Float[Array, "d_model"]:
        folded = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, case), sample), token)
        return jax.random.normal(folded, (width,))

    by_token = jax.vmap(draw, in_axes=(None, None, 0))
    by_sample = jax.vmap(by_token, in_axes=(None, 0, None))
    drawn = jax.vmap(by_sample, in_axes=(0, None, None))(*ladders)
    return jnp.where(subject_tokens(prompts)[:, None, :, None], scale * drawn, 0.0)


def layer_windows(n_layers: int, width: int) -> list[range]:
    """Layers that are put back together, for every centre l: from `l - width // 2` on, cut at both ends."""
    starts = (layer - width // 2 for layer in range(n_layers))
    return [range(max(0, start), min(n_layers, start + width)) for start in starts]


def recall(model: Model, params: Params | dict[str, Array], prompts: TracePrompts) -> Recall:
    """The clean run alone: which of B facts the model knows."""
    decoder = model.bind(params)
    tokens = jnp.concatenate([prompts.prefix, prompts.tail], axis=-1)
    valid = jnp.concatenate([prompts.prefix_mask, prompts.tail_mask], axis=-1)
    at, mask = positions(valid), causal_mask(valid)
    h, _, _ = decoder.run(decoder.embed(tokens, at), range(model.config.n_layers), position=at, mask=mask)
    last = prompts.prefix.shape[-1] + prompts.tail_mask.sum(axis=-1) - 1
    logits = decoder.logits(jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0])
    return Recall(_probability(logits, prompts.target), logits.argmax(axis=-1) == prompts.target)


def trace_effects(
    model: Model,
    params: Params | dict[str, Array],
    prompts: TracePrompts,
    noise: Float[Array, "B K S d_model"],
    where: Bool[Array, "B M S"],
    config: TraceConfig = TraceConfig(),
) -> Effects:
    """Clean, corrupted and restored probabilities of B facts, for M choices of tokens and every layer.

    Facts, choices of tokens and groups of `at_once` samples are taken one after the other, layers and the
    samples of a group together: at most `L * at_once` rows of S tokens are alive. A restored run starts
    where its window does, from the corrupted run's states; the prefix is run once a fact.

    Raises:
        ConfigError: for a window below 1, or `at_once` that does not divide K.
    """
    samples = noise.shape[1]
    at_once = samples if config.at_once is None else config.at_once
    width = WINDOW[config.site] if config.window is None else config.window
    if width < 1:
        raise ConfigError(f"window is {width}; it must be at least 1 layer")
    if at_once < 1 or samples % at_once:
        raise ConfigError(f"at_once is {at_once}; it must divide the number of noise samples, {samples}")
    decoder = model.bind(params)
    windows = layer_windows(model.config.n_layers, width)

    def one(given: tuple[TracePrompts, Array, Array]) -> Effects:
        prompt, fact_noise, choices = given
        fact = _prefix_run(decoder, prompt)
        runs = _full_runs(decoder, fact, prompt, fact_noise, config.site)
        p = _probability(runs.logits, prompt.target)
        clean = {layer: vectors[:1] for layer, vectors in runs.site.items()}
        groups = [x[1:].reshape(-1, at_once, *x.shape[1:]) for x in runs.inputs]

        def restore(work: tuple[Bool[Array, "S"], list[Array]]) -> Float[Array, "L"]:
            tokens, inputs = work
            logits = _restored_runs(decoder, fact, inputs, windows, config.site, clean, tokens)
            return _probability(logits, prompt.target).reshape(len(windows), -1).mean(axis=-1)

        def choice(tokens: Bool[Array, "S"]) -> Float[Array, "L"]:
            return jax.lax.map(lambda group: restore((tokens, group)), groups).mean(axis=0)

        return Effects(
            clean=p[0],
            knows=runs.logits[0].argmax() == prompt.target,
            corrupted=p[1:].mean(),
            restored=jax.lax.map(choice, choices),
        )

    return jax.lax.map(one, (prompts, noise, where))


def _prefix_run(decoder: Decoder, prompt: TracePrompts) -> _Fact:
    """Runs the prefix of one prompt, whose fields have no leading axis, through all layers."""
    valid = jnp.concatenate([prompt.prefix_mask, prompt.tail_mask])[None]
    before = prompt.prefix.shape[-1]
    position, mask = positions(valid), causal_mask(valid)
    at = position[:, :before]
    _, _, memory = decoder.run(
        decoder.embed(prompt.prefix[None], at),
        range(decoder.config.n_layers),
        position=at,
        mask=mask[:, :before, :before],
        keep_memory=True,
    )
    return _Fact(position[:, before:], mask[:, before:], memory, prompt.tail_mask.sum() - 1)


def _full_runs(
    decoder: Decoder, fact: _Fact, prompt: TracePrompts, noise: Float[Array, "K S d_model"], site: Site
) -> _Runs:
    """The clean run and the corrupted ones, side by side."""
    embedded = decoder.embed(prompt.tail[None], fact.position)
    h = jnp.concatenate([embedded, embedded + noise.astype(embedded.dtype)])
    rows, layers = h.shape[0], range(decoder.config.n_layers)
    last, trace, _ = decoder.run(
        h,
        layers,
        position=_repeat(fact.position, rows),
        mask=_repeat(fact.mask, rows),
        memory={layer: Memory(*(_repeat(x, rows) for x in fact.memory[layer])) for layer in layers},
        trace=("residual", site),
    )
    inputs = [h, *(trace.residual[layer] for layer in layers[:-1])]
    return _Runs(inputs, getattr(trace, site), decoder.logits(last[:, fact.last]))


def _restored_runs(
    decoder: Decoder,
    fact: _Fact,
    inputs: list[Float[Array, "K S d_model"]],
    windows: list[range],
    site: Site,
    clean: dict[int, Float[Array, "1 S d_model"]],
    tokens: Bool[Array, "S"],
) -> Float[Array, "L*K vocab"]:
    """Next-token logits of every corrupted run with every window put back at `tokens`, window-major.

    Windows start in order, so the rows of those that start at a layer join behind the others there.
    """
    samples = inputs[0].shape[0]
    h = inputs[0][:0]
    for layer, begun in enumerate(inputs):
        starting = sum(window.start == layer for window in windows)
        h = jnp.concatenate([h, jnp.tile(begun, (starting, 1, 1))])
        rows = h.shape[0]
        inside = jnp.array([layer in window for window in windows[: rows // samples]])
        h, _, _ = decoder.run(
            h,
            range(layer, layer + 1),
            position=_repeat(fact.position, rows),
            mask=_repeat(fact.mask, rows),
            memory={layer: Memory(*(_repeat(x, rows) for x in fact.memory[layer]))},
            patch=Patch(site, {layer: clean[layer]}, {layer: jnp.repeat(inside, samples)[:, None] & tokens}),
        )
    return decoder.logits(h[:, fact.last])


def _probability(logits: Float[Array, "N vocab"], target: Int[Array, "#N"]) -> Float[Array, "N"]:
    """Of one token for each row, or for all."""
    at = jnp.broadcast_to(target, logits.shape[:1])[:, None]
    chosen = jnp.take_along_axis(logits, at, axis=-1)[:, 0]
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))


def _repeat(x: Array, rows: int) -> Array:
    return jnp.broadcast_to(x, (rows, *x.shape[1:]))


class AverageEffects(NamedTuple):
    """AIE by kind of token (`jaxedit.types.FIRST_SUBJECT` ... `LAST`) and layer."""

    effect: Float[Array, "6 L"]  # mean over a fact's tokens of the kind, then over facts; NaN without any
    facts: Float[Array, "6"]  # how many facts have such a token


def average_effects(indirect: Float[Array, "B S L"], prompts: TracePrompts) -> AverageEffects:
    """The average indirect effect of putting back every token alone (`each_token`); padding facts left out."""
    chosen = prompts.kind[:, None, :] == jnp.arange(KINDS)[:, None]
    chosen = chosen & (prompts.weight > 0)[:, None, None]
    count = chosen.sum(axis=-1)
    share = chosen / jnp.maximum(count, 1)[..., None]
    by_fact = jnp.einsum("bks,bsl->bkl", share, jnp.where(chosen.any(axis=1)[..., None], indirect, 0.0))
    facts = (count > 0).sum(axis=0)
    mean = by_fact.sum(axis=0) / jnp.maximum(facts, 1)[:, None]
    return AverageEffects(jnp.where(facts[:, None] > 0, mean, jnp.nan), facts.astype(jnp.float32))
