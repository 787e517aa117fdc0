"""Value optimisation against the oracle, one fact at a time in float64, and against its own laws."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.data import Fact, pad_requests
from jaxedit.lookup import Rows, SplitPass, rows_of, split_pass
from jaxedit.models.decoder import Decoder, Tap, causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params, Requests
from jaxedit.values import (
    ValueConfig,
    Values,
    lookup_value,
    minimise,
    most_probable,
    optimise_values,
    value_loss,
)
from tests.cases import FACTS, LAYER, Case, oracle_facts, relative
from tests.reference.tiny import TINY_CONTEXTS
from tests.reference.values import Value, optimise_value

# ||h0|| is small in tiny models, so steps are smaller and the decay weaker than in the presets.
CONFIG = ValueConfig(learning_rate=0.1, steps=20, weight_decay=0.01, clamp=4.0, stop_loss=0.0)
SITES = ("mlp", "block")


@functools.partial(jax.jit, static_argnums=(0, 3))
def optimised(
    model: Model,
    params: Params,
    requests: Requests,
    fixed: tuple[tuple[str, Any], ...],
    numbers: dict[str, float],
) -> Values:
    config = ValueConfig(**dict(fixed), **numbers)
    decoder, rows = model.bind(params), rows_of(requests)
    split = split_pass(decoder, rows, LAYER, LAYER)
    return optimise_values(decoder, requests, rows, split, LAYER, config)


def ours(case: Case, config: ValueConfig, requests: Requests | None = None) -> Values:
    """Compiled once for each site, way to stop early and shape: the other settings are arguments."""
    numbers = vars(config).copy()
    fixed = tuple(
        (name, numbers.pop(name)) for name in ("site", "steps", "patience", "reference_quirks", "shares")
    )
    requests = case.encode(FACTS) if requests is None else requests
    return optimised(case.model, case.params([LAYER]), requests, fixed, numbers)


@functools.cache
def theirs(
    case: Case,
    config: ValueConfig,
    facts: tuple[Fact, ...] = FACTS,
    contexts: tuple[str, ...] = TINY_CONTEXTS,
) -> list[Value]:
    return [
        optimise_value(
            case.oracle,
            case.checkpoint.tokenizer,
            fact,
            contexts,
            LAYER,
            site=config.site,
            lr=config.learning_rate,
            steps=config.steps,
            weight_decay=config.weight_decay,
            clamp=config.clamp,
            kl=config.kl,
            stop_loss=config.stop_loss,
            patience=config.patience,
            quirks=config.reference_quirks,
        )
        for fact in oracle_facts(facts)
    ]


class Objective(NamedTuple):
    """The loss of a batch and what it is made of."""

    decoder: Decoder
    rows: Rows
    split: SplitPass
    origin: Array
    loss: Callable[[Array], Array]


def objective(model: Model, params: Params, requests: Requests, config: ValueConfig) -> Objective:
    decoder, rows = model.bind(params), rows_of(requests)
    split = split_pass(decoder, rows, LAYER, LAYER)
    origin = lookup_value(split, requests, LAYER, config.site)
    loss = value_loss(decoder, requests, rows, split, LAYER, origin, config)
    return Objective(decoder, rows, split, origin, loss)


def summed(loss: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda delta: loss(delta).sum()


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(
    model: Model, params: Params, requests: Requests, config: ValueConfig, delta: Array
) -> tuple[Array, Array]:
    """By the split pass, and by a plain forward of whole rows through all layers."""
    made = objective(model, params, requests, config)
    whole = functools.partial(full_loss, made, requests, config)
    return jax.grad(summed(made.loss))(delta), jax.grad(summed(whole))(delta)


@pytest.mark.parametrize("site", SITES)
def test_first_gradient_is_the_oracles(case: Case, site: str) -> None:
    config = replace(CONFIG, site=site)
    zero = jnp.zeros((len(FACTS), case.model.config.d_model))
    found, _ = gradients(case.model, case.params([LAYER]), case.encode(FACTS), config, zero)
    for mine, value in zip(found, theirs(case, config), strict=True):
        assert relative(mine, value.first_gradient) <= 1e-5


@pytest.mark.parametrize("site", SITES)
def test_value_losses_and_updates_are_the_oracles(case: Case, site: str) -> None:
    config = replace(CONFIG, site=site)
    found = ours(case, config)
    for i, value in enumerate(theirs(case, config)):
        assert relative(found.origin[i], value.h0) <= 1e-5
        assert relative(found.target[i], value.z) <= 1e-3
        assert np.asarray(found.losses[:, i]) == pytest.approx(value.losses, rel=1e-3)
        assert int(found.updates[i]) == value.updates == config.steps - 1


def test_facts_stop_each_at_its_own_step_as_the_oracle_does(case: Case) -> None:
    free = theirs(case, CONFIG)
    config = replace(CONFIG, stop_loss=between(free))
    expected = theirs(case, config)
    assert len({value.updates for value in expected}) > 2, "the facts must stop at different steps"
    found = ours(case, config)
    for i, value in enumerate(expected):
        assert int(found.updates[i]) == value.updates
        assert relative(found.target[i], value.z) <= 1e-3
        taken = len(value.losses)
        assert np.asarray(found.losses[:taken, i]) == pytest.approx(value.losses, rel=1e-3)
        assert np.isnan(found.losses[taken:, i]).all()


def between(values: Sequence[Value]) -> float:
    """Of the stopping losses at which facts stop at three steps or more, the one farthest from any loss met."""
    losses = np.sort(np.concatenate([value.losses for value in values]))
    middles, gaps = (losses[1:] + losses[:-1]) / 2, np.diff(losses)
    steps = [{next((i for i, x in enumerate(v.losses) if x < m), -1) for v in values} for m in middles]
    return float(
        max((gap, middle) for gap, middle, at in zip(gaps, middles, steps, strict=True) if len(at) > 2)[1]
    )


def test_norm_stays_within_the_clamp_as_the_oracles(case: Case) -> None:
    config = replace(CONFIG, clamp=0.3)
    found, expected = ours(case, config), theirs(case, config)
    bound = config.clamp * jnp.linalg.norm(found.origin, axis=-1)
    assert np.asarray(jnp.linalg.norm(found.delta, axis=-1)) == pytest.approx(np.asarray(bound), rel=1e-5)
    for i, value in enumerate(expected):
        assert relative(found.target[i], value.z) <= 1e-3


def test_batch_of_facts_is_each_alone(case: Case) -> None:
    requests = case.encode(FACTS)
    together = ours(case, CONFIG, requests)
    for i in range(len(FACTS)):
        alone = ours(case, CONFIG, jax.tree.map(lambda x: x[i : i + 1], requests))  # noqa: B023
        assert relative(together.target[i], alone.target[0]) <= 1e-4
        assert int(together.updates[i]) == int(alone.updates[0])


def test_padding_facts_never_start_and_change_nothing(gpt2: Case) -> None:
    requests = gpt2.encode(FACTS)
    whole = ours(gpt2, CONFIG, requests)
    padded = ours(gpt2, CONFIG, pad_requests(jax.tree.map(lambda x: x[:3], requests), 5))
    assert not padded.delta[3:].any()
    assert not padded.updates[3:].any()
    assert np.isnan(padded.losses[:, 3:]).all()
    assert relative(padded.target[:3], whole.target[:3]) <= 1e-5


@pytest.mark.parametrize("site", SITES)
def test_split_gradient_is_the_full_forward_gradient(case: Case, site: str) -> None:
    assert_split_is_full(case, site)


@pytest.mark.parametrize(
    ("name", "site"),
    [("mistral", "block"), ("gemma3_text", "mlp"), pytest.param("gptj", "mlp", marks=pytest.mark.slow)],
)
def test_so_it_is_with_windows_parallel_branches_and_norms_behind_the_mlp(
    case_of: Callable[[str], Case], name: str, site: str
) -> None:
    assert_split_is_full(case_of(name), site)


def assert_split_is_full(case: Case, site: str) -> None:
    shape = (len(FACTS), case.model.config.d_model)
    delta = jnp.asarray(0.3 * np.random.default_rng(1).standard_normal(shape), jnp.float32)
    config = replace(CONFIG, site=site)
    split, full = gradients(case.model, case.params([LAYER]), case.encode(FACTS), config, delta)
    for one, other in zip(split, full, strict=True):
        assert relative(one, other) <= 1e-5


def full_loss(made: Objective, requests: Requests, config: ValueConfig, delta: Array) -> Array:
    """The objective written plainly over whole rows."""
    facts, n_rows, width = requests.prefix.shape
    tokens = jnp.concatenate([made.rows.prefix, made.rows.tail], axis=-1)
    valid = jnp.concatenate([made.rows.prefix_valid, made.rows.tail_valid], axis=-1)
    lookup = jnp.full((facts * n_rows,), width)

    def log_p(vector: Array) -> Array:
        position = positions(valid)
        h, _, _ = made.decoder.run(
            made.decoder.embed(tokens, position),
            range(made.decoder.config.n_layers),
            position=position,
            mask=causal_mask(valid),
            tap=Tap(LAYER, config.site, jnp.repeat(vector, n_rows, axis=0), lookup),
        )
        logits = made.decoder.logits(h)
        return jax.nn.log_softmax(logits).reshape(facts, n_rows, *logits.shape[1:])

    edited, original = log_p(delta), log_p(jnp.zeros_like(delta))[:, -1, width]
    shares = requests.target_mask / requests.target_mask.sum(axis=-1, keepdims=True)
    essence = edited[:, -1, width]
    divergence = jnp.sum(jnp.exp(essence) * (essence - original), axis=-1)
    decay = jnp.linalg.norm(delta, axis=-1) / jnp.sum(made.origin**2, axis=-1)
    nll = jnp.zeros(facts)
    for context in range(n_rows - 1):
        for t in range(requests.target.shape[1]):
            at = width + requests.predict_at[:, context, t]
            nll -= shares[:, t] * edited[jnp.arange(facts), context, at, requests.target[:, t]]
    return nll / (n_rows - 1) + config.kl * divergence + config.weight_decay * decay


def test_steps_that_cannot_improve_make_no_update() -> None:
    """One step is the last step, so nothing moves; and a loss already low stops at once."""

    def objective(delta: Array) -> tuple[Array, Array]:
        return jnp.sum((delta - 1.0) ** 2, axis=-1), jnp.zeros(len(delta), bool)

    origin, active = jnp.ones((2, 3)), jnp.array([True, True])
    for config in (replace(CONFIG, steps=1), replace(CONFIG, stop_loss=10.0)):
        values = minimise(objective, origin, active, config)
        assert not values.updates.any()
        assert not values.delta.any()
        assert np.isfinite(values.losses[0]).all()
        assert np.isnan(values.losses[1:]).all()


def test_pair_of_vectors_is_the_oracles(case: Case) -> None:
    """PMET: the MLP's of two, one on the attention's output which that MLP sees."""
    config = replace(CONFIG, site="attention+mlp", steps=8)
    found = ours(case, config)
    for i, value in enumerate(theirs(case, config)):
        assert relative(found.origin[i], value.h0[1]) <= 1e-5
        assert relative(found.delta[i], value.delta[1]) <= 1e-3
        assert np.asarray(found.losses[:, i]) == pytest.approx(value.losses, rel=1e-3)


# Facts that a tiny random model can be made to answer: the subject ends the prompt, targets of one and two tokens.
REACHABLE = tuple(
    Fact(id=f"reach-{i}", subject=subject, prompt=prompt, target_new=target, target_true="jazz")
    for i, (prompt, subject, target) in enumerate(
        (
            ("The city of Lyon", "Lyon", "Rome"),
            ("The capital is Paris", "Paris", "town"),
            ("The city of Lyon", "Lyon", "town E"),
            ("The city of Lyon", "Lyon", "RomeThe"),
            ("The capital is Paris", "Paris", "RomeU"),
        )
    )
)


def test_most_probable_early_stopping_is_the_oracles(case: Case) -> None:
    """Facts of one and of two target tokens, each at its own step; some never."""
    config = replace(CONFIG, learning_rate=0.3, clamp=20.0, kl=0.0, weight_decay=0.0, patience=2)
    contexts = TINY_CONTEXTS[:2]
    expected = theirs(case, config, REACHABLE, contexts)
    found = ours(case, config, case.encode(REACHABLE, contexts))
    early = [value.updates < config.steps - 1 for value in expected]
    assert any(early[:2])
    assert any(early[2:])
    assert not all(early)
    for i, value in enumerate(expected):
        assert int(found.updates[i]) == value.updates
        assert relative(found.target[i], value.z) <= 1e-3
        assert np.isnan(found.losses[len(value.losses) :, i]).all()


def answers(right: list[list[bool]]) -> tuple[Array, Requests]:
    """One fact with target tokens 1, 2, ...; `right[context][t]` says whether token t is the arg-max there."""
    contexts, tokens = len(right), len(right[0])
    target = jnp.arange(1, tokens + 1)[None]
    nothing = jnp.zeros((1, contexts + 1, 1), jnp.int32)
    return jnp.array(right)[None], Requests(
        prefix=nothing,
        prefix_mask=nothing > 0,
        tail=nothing,
        tail_mask=nothing == 0,
        target=target,
        target_mask=target > 0,
        predict_at=jnp.zeros((1, contexts, tokens), jnp.int32),
        weight=jnp.ones(1),
        case=jnp.zeros(1, jnp.int32),
    )


def test_most_probable_asks_for_all_tokens_in_every_context_bare_prompt_included() -> None:
    every = [[True, True]] * 6
    assert bool(most_probable(*answers(every))[0])
    for context, token in ((0, 0), (0, 1), (3, 0), (5, 1)):
        one_wrong = [list(row) for row in every]
        one_wrong[context][token] = False
        assert not bool(most_probable(*answers(one_wrong))[0])
    right, requests = answers([[True, False]] * 6)
    padded = requests._replace(target_mask=jnp.array([[True, False]]))
    assert bool(most_probable(right, padded)[0])


def test_first_release_counts_tokens_against_five_without_the_bare_prompt() -> None:
    def quirk(right: list[list[bool]]) -> bool:
        return bool(most_probable(*answers(right), reference_quirks=True)[0])

    assert quirk([[True]] * 6)
    assert quirk([[False]] + [[True]] * 5)  # the bare prompt may be wrong
    assert not quirk([[True, True]] * 6)  # all ten tokens are right, and it goes on
    assert quirk([[True, False]] * 6)  # half of them are wrong, and it stops


def test_stops_at_the_step_at_which_patience_is_reached_in_total() -> None:
    """The target is most probable at steps 2, 5 and 6 of fact 0, and at all of fact 1; one step is one update."""

    def objective(delta: Array) -> tuple[Array, Array]:
        step = jnp.round(delta[:, 0] / 0.1).astype(
            jnp.int32
        )  # Adam's first steps on a constant slope are even
        hit = jnp.isin(step, jnp.array([2, 5, 6])) | (jnp.arange(2) == 1)
        return 10.0 - delta[:, 0], hit

    config = replace(CONFIG, clamp=100.0)
    for patience, updates in ((1, (2, 0)), (2, (5, 1)), (3, (6, 2)), (4, (19, 3))):
        values = minimise(
            objective, jnp.ones((2, 1)), jnp.array([True, True]), replace(config, patience=patience)
        )
        assert tuple(np.asarray(values.updates)) == updates
