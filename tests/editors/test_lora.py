"""LoRA in float32 against the oracle's, which runs adapters beside the matrices; what it touches and carries."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import Array

from jaxedit.data import pad_requests
from jaxedit.editors.lora import (
    GENERATOR,
    Adapters,
    LoRAConfig,
    LoRASequenceConfig,
    initial_adapters,
    lora,
    lora_sequence,
    merge,
    scaled,
)
from jaxedit.linalg import dense
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import Editor, LowRank, Params, Requests
from tests.cases import FACTS, Case, oracle_facts, relative, same_bits
from tests.reference import gradients as oracle
from tests.reference import layout

BATCHES = ([0, 3, 4], [1, 2])
TOLERANCE = 1e-4
STEPS = 5
SETTINGS: dict[str, Any] = {
    "shares": (),
    "rank": 3,
    "alpha": 6.0,
    "steps": STEPS,
    "stop_loss": 0.0,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}
TARGETS = {"gpt2": ("mlp.down",), "llama": ("attention.query", "attention.value", "mlp")}


def params_of(case: Case, config: LoRAConfig) -> Params:
    return case.model.split(case.checkpoint.params, case.model.parameter_paths(config.layers, config.targets))


def name_of(path: str) -> tuple[int, str]:
    """Layer and projection of `layers.1.mlp.down.kernel`."""
    _, layer, *name, _ = path.split(".")
    return int(layer), ".".join(name)


class Reference:
    """The oracle's adapters on the same matrices, started from the library's initial ones."""

    def __init__(self, case: Case, config: LoRAConfig) -> None:
        self.case, self.config, self.scale = case, config, config.alpha / config.rank
        paths = case.model.parameter_paths(config.layers, config.targets)
        self.modules = {path: oracle.projection(case.oracle, *name_of(path)) for path in paths}

    def begin(self, adapters: Adapters) -> None:
        """Takes A and B over, with fresh moments."""
        self.adapters = {
            path: tuple(torch.tensor(np.asarray(x).T, dtype=torch.float64) for x in (left, right))
            for path, (left, right) in adapters.items()
        }
        factors = [x.requires_grad_(True) for pair in self.adapters.values() for x in pair]
        rate = self.config.learning_rate
        self.adamw = oracle.AdamW(
            factors, lambda _: rate, self.config.weight_decay, clip=self.config.clip_norm
        )

    def product(self) -> dict[str, torch.Tensor]:
        """(alpha / r) B A [out, in] of every matrix."""
        return {path: self.scale * (B @ A).detach() for path, (A, B) in self.adapters.items()}

    def learn(self, batch: list[int]) -> None:
        facts = [oracle_facts(FACTS)[i] for i in batch]
        loss = oracle.fact_loss(self.case.oracle, self.case.checkpoint.tokenizer, facts)
        with layout.frozen(self.case.oracle), oracle.adapted(self.modules, self.adapters, self.scale):
            self.adamw.minimise(loss, STEPS)

    def add(self, deltas: dict[str, torch.Tensor], sign: int = 1) -> None:
        in_out = layout.layout_of(self.case.oracle).in_out
        with torch.no_grad():
            for path, delta in deltas.items():
                self.modules[path].get_parameter("weight").add_(sign * (delta.T if in_out else delta))


def test_lora_edits_of_a_sequence_are_the_oracles(case: Case) -> None:
    config = LoRAConfig(layers=case.span, targets=TARGETS[case.name], **SETTINGS)
    editor, params, reference = lora(case.model, config), params_of(case, config), Reference(case, config)
    state, update, total = editor.init(params), jax.jit(editor.update), []
    for batch in BATCHES:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=GENERATOR), state.edits)
        reference.begin(initial_adapters(key, params.edited, config.rank))
        params, state, info = update(params, state, case.batch(batch, 3))
        reference.learn(batch)
        total.append(reference.product())
        reference.add(total[-1])
        assert sorted(info.delta) == sorted(total[-1])
        for path, delta in total[-1].items():
            assert relative(dense(info.delta[path]), delta.T) <= TOLERANCE
            assert np.linalg.matrix_rank(np.asarray(dense(info.delta[path])), tol=1e-5) == config.rank
    for deltas in total:
        reference.add(deltas, -1)


def test_lora_of_a_sequence_is_the_oracles_on_one_adapter(case: Case) -> None:
    config = LoRASequenceConfig(layers=case.span, targets=TARGETS[case.name], **SETTINGS)
    editor, params, reference = (
        lora_sequence(case.model, config),
        params_of(case, config),
        Reference(case, config),
    )
    start, state, update = params, editor.init(params), jax.jit(editor.update)
    reference.begin(state.adapters)
    before = reference.product()
    for batch in BATCHES:
        params, state, info = update(params, state, case.batch(batch, 3))
        reference.learn(batch)
        after = reference.product()
        for path, delta in after.items():
            assert relative(dense(info.delta[path]), (delta - before[path]).T) <= TOLERANCE
            assert relative(dense(scaled(state.adapters, reference.scale)[path]), delta.T) <= TOLERANCE
            left, right = (np.asarray(x, np.float64) for x in state.adapters[path])
            merged = np.asarray(start.edited[path], np.float64) + reference.scale * left @ right
            assert relative(params.edited[path], merged) <= 1e-6
        before = after


def random_adapters(case: Case, paths: tuple[str, ...]) -> Adapters:
    """With B unlike zero."""
    adapters = {}
    for index, path in enumerate(paths):
        d_in, d_out = case.model.shapes[path]
        left, right = jax.random.split(jax.random.fold_in(jax.random.key(3), index))
        adapters[path] = LowRank(
            0.1 * jax.random.normal(left, (d_in, 3)), 0.1 * jax.random.normal(right, (3, d_out))
        )
    return adapters


def test_merged_forward_is_the_unmerged_one(cases: dict[str, Case]) -> None:
    """On every projection of every layer; float32 rounding apart: logits within 1e-5 of their largest."""
    case = cases["llama"]
    paths = case.model.parameter_paths(None, ("attention", "mlp"))
    assert len(paths) == 7 * case.model.config.n_layers
    params = case.model.split(case.checkpoint.params, paths)
    adapters = random_adapters(case, paths)
    tokens = jnp.asarray(case.blocks[:4])
    unmerged = np.asarray(jax.jit(lambda: case.model.bind(params, adapters)(tokens))())
    run = jax.jit(lambda params: case.model.bind(params)(tokens))
    merged, plain = np.asarray(run(merge(params, adapters)[0])), np.asarray(run(params))
    assert np.abs(merged - unmerged).max() <= 1e-5 * np.abs(plain).max()
    assert np.abs(merged - plain).max() > 0.1 * np.abs(plain).max()


def test_scale_is_alpha_over_rank() -> None:
    adapter = {"w": LowRank(jnp.ones((4, 2)), jnp.ones((2, 3)))}
    assert np.array_equal(dense(scaled(adapter, 6.0 / 2)["w"]), np.full((4, 3), 6.0))


class Run:
    """A LoRA editor on the tiny GPT-2 under the driver; other matrices are float32 masters too."""

    def __init__(self, case: Case, sequence: bool) -> None:
        config = LoRASequenceConfig(layers=(2,), targets=("attention.out", "mlp.up"), **SETTINGS)
        self.paths = case.model.parameter_paths(config.layers, config.targets)
        if not sequence:
            config = LoRAConfig(layers=config.layers, targets=config.targets, **SETTINGS)
        self.config = replace(config, steps=2)
        self.editor: Editor = (lora_sequence if sequence else lora)(case.model, self.config)
        others = case.model.parameter_paths((0, 1, 2), ("attention", "mlp"))
        self.params = case.model.split(case.checkpoint.params, others)
        self.run = chunk_function(self.editor)
        self.batches = [case.batch(batch, 2) for batch in ([0, 1], [2, 3], [4, 0], [1, 3])]
        self.nothing = pad_requests(jax.tree.map(lambda x: x[:0], self.batches[0]), 2)

    def begin(self) -> tuple[dict[str, Array], Any]:
        return jax.tree.map(jnp.copy, self.params.edited), self.editor.init(self.params)

    def go(self, carry: tuple[dict[str, Array], Any], batches: list[Requests]):
        edited, state, steps = self.run(carry[0], self.params.frozen, carry[1], Chunk(stack(batches), None))
        return (edited, state), steps


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "lora-sequence"])
def run(request: pytest.FixtureRequest, gpt2: Case) -> Run:
    return Run(gpt2, request.param)


def test_chunks_of_two_go_on_where_the_last_ended_bit_by_bit(run: Run) -> None:
    whole, steps = run.go(run.begin(), run.batches)
    carry, first = run.go(run.begin(), run.batches[:2])
    carry, second = run.go(carry, run.batches[2:])
    assert same_bits(carry, whole)
    halves = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    assert same_bits(halves, steps)
    assert all(bool(np.all(np.diff(norm) != 0)) for norm in (steps.norm[path] for path in run.paths))


def test_only_the_chosen_matrices_change_and_deltas_have_the_rank(run: Run) -> None:
    (edited, _), steps = run.go(run.begin(), run.batches)
    changed = {path for path in edited if not same_bits(edited[path], run.params.edited[path])}
    assert changed == set(run.paths)
    rank = run.config.rank * (2 if run.config.carried else 1)
    for path in run.paths:
        left, right = steps.factors[path]
        assert left.shape[-1] == right.shape[-2] == rank
        total = np.asarray(run.params.edited[path], np.float64)
        total = total + (np.asarray(left, np.float64) @ np.asarray(right, np.float64)).sum(axis=0)
        assert relative(edited[path], total) <= 1e-6


def test_padding_changes_nothing(run: Run) -> None:
    """Neither its content, nor an update of padding alone between two others, or at the end."""
    one = pad_requests(jax.tree.map(lambda x: np.asarray(x)[:1], run.batches[0]), 2)
    other = one._replace(tail=np.where(np.arange(2)[:, None, None] > 0, 7, one.tail))
    assert not np.array_equal(one.tail, other.tail)
    assert same_bits(*(run.go(run.begin(), [x, run.batches[1]])[0] for x in (one, other)))
    with_gap, steps = run.go(run.begin(), [run.batches[0], run.nothing, run.batches[1], run.nothing])
    without, _ = run.go(run.begin(), run.batches[:2])
    assert same_bits(with_gap, without)
    for path in run.paths:
        assert np.array_equal(np.asarray(steps.delta_norm[path]) == 0, [False, True, False, True])


def test_edits_learn_each_from_another_adapter_drawn_from_the_state_alone(gpt2: Case) -> None:
    config = LoRAConfig(layers=(2,), learning_rate=3e-2, stop_loss=0.0)
    params = params_of(gpt2, config)
    editor = lora(gpt2.model, config)
    update, request = jax.jit(editor.update), gpt2.batch([0], 1)
    state = editor.init(params)
    _, second, info = update(params, state, request)
    _, _, later = update(params, second, request)
    (path,) = info.delta
    assert relative(later.delta[path].left, info.delta[path].left) > 0.5
    for losses in (info.metrics["loss"], later.metrics["loss"]):
        assert losses[-1, 0] < 0.7 * losses[0, 0]
    reseeded = lora(gpt2.model, replace(config, seed=1)).init(params)
    assert relative(update(params, reseeded, request)[2].delta[path].left, info.delta[path].left) > 0.5
    again = state._replace(edits=jnp.asarray(1, jnp.int32))
    assert same_bits(update(params, again, request)[2], later)
