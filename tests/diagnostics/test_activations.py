"""Vectors of prompts against hooks in float64, and measures of their change against plain numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.diagnostics.activations import (
    FACT_POSITIONS,
    TEXT_POSITIONS,
    VECTORS,
    Activations,
    Prompts,
    collect,
    fact_prompts,
    residual_shares,
    shift,
    text_prompts,
    without_first,
)
from jaxedit.diagnostics.meanings import ACTIVATION_MEASURES
from jaxedit.diagnostics.shifts import GROUPS, activation_measures, vector_measures
from jaxedit.errors import ConfigError
from tests.cases import FACTS, Case, equations, relative
from tests.diagnostics.matrices import MATRICES, random_matrix
from tests.reference.vectors import vectors

KEY = jax.random.key(3)


@functools.cache
def compiled(case: Case, wanted: tuple[str, ...] = VECTORS) -> Any:
    return jax.jit(functools.partial(collect, case.model, vectors=wanted))


def prompts_of(case: Case) -> Prompts:
    return fact_prompts(case.encode(FACTS, ("",)))


def ids_of(prompts: Prompts, row: int) -> list[int]:
    return np.asarray(prompts.tokens)[row][np.asarray(prompts.valid)[row]].tolist()


def test_fact_prompts_are_the_prompts_and_where_they_are_looked_at(case: Case) -> None:
    prompts, tokenizer = prompts_of(case), case.checkpoint.tokenizer
    for row, fact in enumerate(FACTS):
        ids = ids_of(prompts, row)
        assert ids == tokenizer(fact.prompt)["input_ids"]
        subject, last = np.asarray(prompts.at)[row]
        padding = int(np.flatnonzero(np.asarray(prompts.valid)[row])[0])
        until = tokenizer.decode(ids[: subject - padding + 1], skip_special_tokens=True)
        assert until.endswith(fact.subject)
        assert last - padding + 1 == len(ids)
    assert len(FACT_POSITIONS) == prompts.at.shape[1] + 1


def test_every_vector_is_that_of_hooks_in_float64(case: Case) -> None:
    prompts = prompts_of(case)
    found = compiled(case)(case.checkpoint.params, prompts)
    assert found.residual.shape == (case.model.config.n_layers, 3, len(FACTS), case.model.config.d_model)
    for row in range(len(FACTS)):
        expected = vectors(case.oracle, ids_of(prompts, row))
        padding = int(np.flatnonzero(np.asarray(prompts.valid)[row])[0])
        places = [int(at) - padding for at in prompts.at[row]]
        for name, layers in expected.items():
            for layer, tokens in enumerate(layers):
                rows = [*(tokens[place] for place in places), tokens.mean(dim=0)]
                for position, vector in enumerate(rows):
                    mine = getattr(found, name)[layer, position, row]
                    assert relative(mine, vector.numpy()) <= 2e-5, (name, layer, position)


def test_text_is_looked_at_where_it_ends_and_padding_is_nothing(gpt2: Case) -> None:
    tokens = gpt2.blocks[:3, :8]
    wide = np.pad(tokens, ((0, 0), (2, 3)))
    valid = np.pad(np.ones(tokens.shape, bool), ((0, 0), (2, 3)))
    one = compiled(gpt2)(gpt2.checkpoint.params, text_prompts(tokens, np.ones(tokens.shape, bool)))
    other = compiled(gpt2)(gpt2.checkpoint.params, text_prompts(wide, valid))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert len(TEXT_POSITIONS) == one.mlp.shape[1]


def test_the_first_token_can_be_left_out_of_the_mean(gpt2: Case) -> None:
    prompts = prompts_of(gpt2)
    with_it = compiled(gpt2)(gpt2.checkpoint.params, prompts)
    without = compiled(gpt2)(gpt2.checkpoint.params, without_first(prompts))
    np.testing.assert_allclose(with_it.mlp[:, :2], without.mlp[:, :2], rtol=1e-6)
    tokens = vectors(gpt2.oracle, ids_of(prompts, 0))["residual"][1]
    assert relative(without.residual[1, 2, 0], tokens[1:].mean(dim=0).numpy()) <= 2e-5


def test_only_what_is_asked_for_is_kept(gpt2: Case) -> None:
    found = compiled(gpt2, ("mlp",))(gpt2.checkpoint.params, prompts_of(gpt2))
    assert [len(x) for x in found] == [0, gpt2.model.config.n_layers, 0, 0, 1]


def test_one_pass_runs_every_layer_once(gpt2: Case) -> None:
    """As many products as a plain forward pass has, and those of the means."""
    prompts = prompts_of(gpt2)

    def products(function: Any) -> int:
        found = equations(jax.make_jaxpr(function)(gpt2.checkpoint.params).jaxpr)
        return sum(one.primitive.name == "dot_general" for one in found)

    plain = products(lambda params: gpt2.model.bind(params)(prompts.tokens, prompts.valid))
    means = 4 * gpt2.model.config.n_layers + 1
    vocabulary = 1
    assert products(lambda p: collect(gpt2.model, p, prompts)) == plain - vocabulary + means


def test_a_change_of_vectors_in_plain_numpy() -> None:
    x, y = random_matrix(1), random_matrix(2)
    old, new = (np.linalg.norm(z.astype(np.float64), axis=1) for z in (x, y))
    change = np.linalg.norm((y - x).astype(np.float64), axis=1).mean() / old.mean()
    means = np.linalg.norm((y.astype(np.float64) - x).mean(axis=0)) / old.mean()
    cosines = (x.astype(np.float64) * y).sum(axis=1) / (old * new)
    expected = [old.mean(), new.mean(), new.mean() / old.mean(), cosines.mean(), change, means]
    np.testing.assert_allclose(shift(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(shift(x, 3 * x)[2:5], [3, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(shift(x, x)[2:], [1, 1, 0, 0], atol=1e-12)


def test_shares_of_the_residual_stream_make_one() -> None:
    rng = np.random.default_rng(0)
    attention, mlp = rng.normal(size=(3, 10, 6)), 2 * rng.normal(size=(3, 10, 6))
    shares = residual_shares(attention, mlp)
    assert float(sum(share.sum() for share in shares)) == pytest.approx(1)
    lengths = np.linalg.norm(np.concatenate([attention, mlp]), axis=-1)
    np.testing.assert_allclose(np.concatenate(shares), (lengths / lengths.sum(axis=0)).mean(axis=1))
    np.testing.assert_array_equal(residual_shares(0 * attention, 0 * mlp), np.zeros((2, 3)))


def made(seed: int, scale: float = 1.0) -> Activations:
    """Vectors of 24 prompts in 2 layers at 2 positions."""
    rng = np.random.default_rng(seed)

    def draw(layers: int, width: int) -> np.ndarray:
        return (scale * rng.normal(size=(layers, 2, 24, width))).astype(np.float32)

    return Activations(*(draw(2, 8) for _ in VECTORS), draw(1, 8))


@jax.jit
def tables(before: Activations, after: Activations) -> dict[str, dict[str, Array]]:
    return activation_measures(before, after, tuple(GROUPS), 3, KEY)


@jax.jit
def table(before: Array, after: Array) -> dict[str, Array]:
    return vector_measures(before, after, tuple(GROUPS), 3, KEY)


def test_the_table_over_layers_is_that_of_each() -> None:
    before = made(0)
    after = Activations(*(x + np.float32(0.3) * y for x, y in zip(before, made(1), strict=True)))
    found = tables(before, after)
    assert set(found) == {*VECTORS, "final"}
    for name in found:
        for layer in range(len(getattr(before, name))):
            old, new = getattr(before, name)[layer, 1], getattr(after, name)[layer, 1]
            alone = table(old, new)
            for measure, value in alone.items():
                np.testing.assert_allclose(
                    found[name][measure][layer, 1], value, rtol=1e-7, atol=1e-7, err_msg=f"{name} {measure}"
                )
    assert {measure for table in found.values() for measure in table} == set(ACTIVATION_MEASURES)
    shares = [found[name]["residual_share_after"] for name in ("attention", "mlp")]
    np.testing.assert_allclose(np.sum(shares, axis=(0, 1)), 1)


def test_a_few_at_a_time_are_as_all_at_once() -> None:
    whole, parts = (activation_measures(made(0), made(1), ("shift",), 3, KEY, n) for n in (None, 4))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), whole, parts)


def test_nothing_changed_is_nothing_claimed() -> None:
    same = tables(made(0), made(0))["mlp"]
    for name in ("change", "mean_shift", "moved", "procrustes", "frechet"):
        np.testing.assert_allclose(same[name], 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(same["angle"], 0, atol=1e-6)
    np.testing.assert_allclose(same["cka"], 1, rtol=1e-9)
    for name in same:
        if name.endswith("_beyond"):
            assert not same[name].any(), name


def test_longer_vectors_are_beyond_the_floor_of_norms_and_turn_nowhere() -> None:
    x = random_matrix()
    found = table(x, 1.5 * x)
    assert found["half_norm_beyond"] == 1
    assert found["half_angle_beyond"] == 0
    assert found["half_norm"] > 3 * found["half_norm_floor"]
    assert found["half_norm"] == pytest.approx(0.4, abs=2 * float(found["half_norm_floor"]))


def test_the_table_of_degenerate_vectors_has_no_nan() -> None:
    for name, x in MATRICES.items():
        if name != "wide":
            for y in (x, MATRICES["zero"], MATRICES["random"]):
                for measure, value in table(x, y).items():
                    assert not np.isnan(value).any(), (name, measure)


def test_unknown_groups_and_impossible_subspaces_are_refused() -> None:
    x = random_matrix()
    with pytest.raises(ConfigError, match="'subspace'"):
        vector_measures(x, x, ("subspaces",), 3, KEY)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="k is 16"):
        vector_measures(x, x, ("subspace",), 16, KEY)


def test_measures_compile_once_over_steps() -> None:
    traces: list[int] = []

    @jax.jit
    def measure(before: Activations, after: Activations) -> dict[str, dict[str, Array]]:
        traces.append(1)
        return activation_measures(before, after, ("shift", "subspace"), 3, KEY)

    for step in range(4):
        measure(made(0), made(step))
    assert len(traces) == 1
    assert jnp.ones(1).dtype == jnp.float32
