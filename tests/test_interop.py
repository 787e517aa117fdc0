"""NNX modules: ours given and taken back, and others edited by the name of their matrix."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxedit import interop
from jaxedit.data import Fact
from jaxedit.editors.finetune import FineTuneConfig
from jaxedit.editors.finetune import fine_tune as native_fine_tune
from jaxedit.editors.locate import locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.editors.objective import FactConfig
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.editors.transforms import chain, clip_norm
from jaxedit.errors import ConfigError, ModelError, StatisticsError
from jaxedit.linalg import dense
from jaxedit.statistics import second_moments
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import Params, Requests
from tests.cases import FACTS, LAYER, Case, relative, same_bits

WIDTH, VOCAB, LENGTH = 32, 400, 64


class Attend(nnx.Module):
    """One head, keys and queries the same."""

    def __init__(self, rngs: nnx.Rngs):
        self.look, self.give = (nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        look = self.look(x)
        scores = jnp.einsum("ntd,nsd->nts", look, look) / WIDTH**0.5
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -1e9)
        return self.give(jnp.einsum("nts,nsd->ntd", jax.nn.softmax(scores), x))


class Stage(nnx.Module):
    """Norms behind both parts, the second of which is named as nobody names it."""

    def __init__(self, rngs: nnx.Rngs):
        self.attend, self.norms = Attend(rngs), nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.expand = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.contract = nnx.Linear(3 * WIDTH, WIDTH, rngs=rngs)

    @nnx.remat
    def __call__(self, x):
        x = x + self.attend(self.norms[0](x))
        return x + self.contract(jnp.tanh(self.expand(self.norms[1](x))))


class Plain(nnx.Module):
    """A language model that shares nothing with ours."""

    def __init__(self, rngs: nnx.Rngs):
        self.words, self.places = nnx.Embed(VOCAB, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.stages = nnx.List([Stage(rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.read = nnx.Linear(WIDTH, VOCAB, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.words(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for stage in self.stages:
            x = stage(x)
        return self.read(self.drop(x))


CONTRACT = "stages.0.contract.kernel"


def numbers(module: nnx.Module):
    """Copies of all numbers of a module."""
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def test_our_decoder_goes_through_flax_and_comes_back(gpt2: Case) -> None:
    model, flat = gpt2.model, gpt2.checkpoint.params
    decoder = interop.to_nnx(model, flat)
    assert same_bits(interop.from_nnx(model, nnx.merge(*nnx.split(decoder))), dict(sorted(flat.items())))
    tokens = jnp.asarray(gpt2.blocks[:2])
    optimiser = nnx.Optimizer(decoder, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(decoder: nnx.Module, optimiser: nnx.Optimizer) -> jax.Array:
        def loss(decoder: nnx.Module) -> jax.Array:
            logits = decoder(tokens)[:, :-1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradient = nnx.value_and_grad(loss)(decoder)
        optimiser.update(decoder, gradient)
        return value

    with torch.no_grad():
        rows = torch.tensor(gpt2.blocks[:2], dtype=torch.long)
        expected = float(gpt2.oracle(rows, labels=rows).loss)
    losses = [float(step(decoder, optimiser)) for _ in range(2)]
    assert abs(losses[0] - expected) < 1e-5
    assert losses[1] < losses[0]
    trained, path = interop.from_nnx(model, decoder), model.config.edited_path(LAYER)
    assert not same_bits(trained[path], flat[path])
    with pytest.raises(ModelError, match="is not this model's"):
        interop.from_nnx(model, Plain(nnx.Rngs(0)))


CONFIGS = {
    "rome": rome_config(LAYER),
    "r-rome": replace(r_rome_config(LAYER), values=replace(r_rome_config(LAYER).values, patience=3)),
    "memit with memory": memit_config((LAYER,), lam=10.0, memory=True),
}


@pytest.mark.parametrize(
    ("family", "name", "steps"),
    [
        ("gpt2", "rome", 6),  # Adam grows what two graphs round apart: to 1e-5 after twelve
        ("llama", "memit with memory", 12),
        pytest.param("llama", "r-rome", 12, marks=pytest.mark.slow),
        pytest.param("gpt2", "memit with memory", 12, marks=pytest.mark.slow),
    ],
)
def test_an_edit_by_name_is_the_native_one(
    cases: dict[str, Case], family: str, name: str, steps: int
) -> None:
    """Two batches in sequence, a padding fact in the second."""
    case, config = cases[family], CONFIGS[name]
    config = replace(config, values=replace(config.values, site="mlp", steps=steps, shares=()))
    path = case.model.config.edited_path(LAYER)
    foreign, params = interop.adopt(interop.to_nnx(case.model, case.checkpoint.params), path)
    assert relative(interop.second_moment(foreign, params, case.blocks), raw_moment(case)) < 1e-5
    editors = (
        locate_and_edit(case.model, case.moments, config),
        interop.locate_and_edit(foreign, case.moments[LAYER], config),
    )
    ends = []
    for editor, now in zip(editors, (case.params((LAYER,)), params), strict=True):
        update, state, found = jax.jit(editor.update), editor.init(now), []
        for requests in batches(case):
            now, state, info = update(now, state, requests)
            assert info.finite
            found.append((dense(info.delta[path]), info.metrics["value_loss"], info.metrics["value_updates"]))
        ends.append(found)
    for (ours, loss, updates), (theirs, loss_, updates_) in zip(*ends, strict=True):
        assert relative(theirs, ours) < 1e-5
        np.testing.assert_allclose(loss_, loss, rtol=1e-4, atol=1e-5)
        assert np.array_equal(updates_, updates)


def raw_moment(case: Case):
    return second_moments(case.model, case.checkpoint.params, case.blocks, (LAYER,))[LAYER]


def batches(case: Case):
    whole = case.encode(FACTS[:4])
    first, second = (type(whole)(*(x[i : i + 2] for x in whole)) for i in (0, 2))
    return first, second._replace(weight=jnp.array([1.0, 0.0]))


@pytest.mark.slow
def test_fine_tuning_by_name_is_the_native_one(gpt2: Case) -> None:
    path, how = (
        gpt2.model.config.edited_path(LAYER),
        {"learning_rate": 1e-3, "steps": 5, "objective": "prompt_last"},
    )
    foreign, params = interop.adopt(interop.to_nnx(gpt2.model, gpt2.checkpoint.params), path)
    requests = batches(gpt2)[1]
    mine = native_fine_tune(gpt2.model, FineTuneConfig(layers=(LAYER,), **how))
    theirs = interop.fine_tune(foreign, FactConfig(**how))
    _, _, expected = jax.jit(mine.update)(gpt2.params((LAYER,)), {}, requests)
    _, _, found = jax.jit(theirs.update)(params, theirs.init(params), requests)
    assert relative(found.delta[path], expected.delta[path]) < 1e-4
    np.testing.assert_allclose(found.metrics["loss"], expected.metrics["loss"], rtol=1e-4)


# The lookup token is the prompt's last: what random attention moves to others decides nothing.
ENDING = Fact("plain", "Eiffel Tower", "The city of the Eiffel Tower", "Rome", "Paris")


def assert_answers(before: Plain, after: Plain, untouched: Any, requests: Requests) -> None:
    """The edited module answers with the target, the given one does not; both differ in one matrix alone."""
    rows, real = interop.rows_of(requests), requests.target_mask[0]
    target, at = requests.target[0], rows.predict_at[0, 0]
    answers = [module(rows.tokens[:1])[0, at].argmax(axis=-1) for module in (before, after)]
    assert not (answers[0] == target)[real].all()
    assert (answers[1] == target)[real].all()
    assert same_bits(numbers(before), untouched)
    assert not same_bits(numbers(after), untouched)
    after.stages[0].contract.kernel[...] = before.stages[0].contract.kernel[...]
    assert same_bits(numbers(after), untouched)


def test_a_module_that_is_not_ours_learns_within_the_driver_and_its_transforms(gpt2: Case) -> None:
    """By r-ROME: the README's example."""
    plain, requests = Plain(nnx.Rngs(0)), gpt2.encode([ENDING])
    untouched = numbers(plain)
    foreign, params = interop.adopt(plain, CONTRACT)
    editor = chain(interop.fine_tune(foreign, FactConfig(learning_rate=1e-2, steps=40)), clip_norm(100.0))
    start = jax.tree.map(jnp.copy, params.edited)
    chunk = Chunk(stack([requests, requests]), None)
    edited, _, steps = chunk_function(editor)(start, params.frozen, editor.init(params), chunk)
    assert steps.applied.all()
    assert_answers(plain, foreign.module(Params(edited, params.frozen)), untouched, requests)


def test_what_cannot_be_edited_by_name_is_refused(gpt2: Case) -> None:
    plain = Plain(nnx.Rngs(0))
    with pytest.raises(
        ConfigError, match=r"unknown matrix 'stages.0.contrct.kernel'. Did you mean 'stages.0.contract"
    ):
        interop.adopt(plain, "stages.0.contrct.kernel")
    with pytest.raises(ConfigError, match=r"stages.0.contract.bias has shape \(32,\)"):
        interop.adopt(plain, "stages.0.contract.bias")
    tokens = gpt2.blocks[:1]
    around, params = interop.adopt(plain, CONTRACT, lambda module, tokens: module.read(module.words(tokens)))
    with pytest.raises(ConfigError, match="was called 0 times"):
        interop.second_moment(around, params, tokens)
    embedding, params = interop.adopt(plain, "words.embedding")
    with pytest.raises(ConfigError, match="it must be called once, with keys"):
        interop.second_moment(embedding, params, tokens)
    foreign, params = interop.adopt(plain, CONTRACT)
    with pytest.raises(StatisticsError, match="no tokens"):
        interop.second_moment(foreign, params, tokens[:0])
    with pytest.raises(StatisticsError, match=r"keys of stages.0.contract.kernel are 96 wide"):
        interop.locate_and_edit(foreign, jnp.eye(5), r_rome_config(0)).init(params)
    both = replace(r_rome_config(0), values=replace(r_rome_config(0).values, site="attention+mlp"))
    for config in (both, replace(r_rome_config(0), anchor=0.0)):
        with pytest.raises(ConfigError, match="jaxedit's own decoder alone"):
            interop.locate_and_edit(foreign, jnp.eye(96), config)
