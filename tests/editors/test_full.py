"""Full fine-tuning and continual pre-training against the oracle in float64; decay, padding, what is carried."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import Array

from jaxedit.data import encode_text
from jaxedit.digests import fingerprint
from jaxedit.editors.full import FullConfig, PretrainConfig, continue_pretraining, full_fine_tune
from jaxedit.errors import ConfigError
from jaxedit.evaluation.perplexity import perplexity
from jaxedit.models.sources import load
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.trajectory.snapshots import restore, save
from jaxedit.types import Editor, Params, TextBatch
from tests.cases import FACTS, Case, oracle_facts, relative, same_bits
from tests.reference import gradients as oracle
from tests.reference.tiny import CORPUS, save_tiny

BATCHES = ([0, 3, 4], [1, 2])
TOLERANCE = 1e-4
RATE, DECAY, CLIP = 1e-3, 0.5, 1.0
OPTIONS = {"learning_rate": RATE, "weight_decay": DECAY, "clip_norm": CLIP, "stop_loss": 0.0}


def text_batches(case: Case, length: int = 12, batch: int = 4) -> list[TextBatch]:
    return encode_text(" ".join(CORPUS), case.checkpoint.tokenizer, length=length, batch=batch)


def everything(case: Case, paths: tuple[str, ...] | None = None) -> Params:
    return case.model.split(case.checkpoint.params, paths or case.model.parameter_paths())


def sequence(editor: Editor, params: Params, batches: list[Any]) -> tuple[Params, Any]:
    state, update = editor.init(params), jax.jit(editor.update)
    for batch in batches:
        params, state, info = update(params, state, batch)
        assert bool(info.finite)
    return params, state


def oracle_after(
    case: Case, folder: Path, losses: Callable[[Any], list[Callable[[], torch.Tensor]]], steps: int
) -> dict[str, Array]:
    """Parameters by our paths after the oracle minimised the losses one after the other."""
    model = copy.deepcopy(case.oracle).requires_grad_(True)
    adamw = oracle.AdamW(list(model.parameters()), lambda _: RATE, DECAY, CLIP)
    for loss in losses(model):
        adamw.minimise(loss, steps)
    save_tiny(model.float(), case.checkpoint.tokenizer, folder)
    return load(str(folder)).params


def assert_same_change(case: Case, found: Params, expected: dict[str, Array]) -> None:
    """All parameters' change, but that of attention's key bias: the softmax does not depend on it, so
    its gradient is zero in exact arithmetic and rounding alone in float32, which Adam blows up."""
    paths = [path for path in expected if not path.endswith("attention.key.bias")]
    start = {path: np.asarray(case.checkpoint.params[path], np.float64) for path in paths}
    ours = np.concatenate([(found.edited[path] - start[path]).ravel() for path in paths])
    theirs = np.concatenate([(expected[path] - start[path]).ravel() for path in paths])
    assert relative(ours, theirs) <= TOLERANCE
    for path in paths:  # one entry whose gradient is near zero weighs more in a small parameter
        assert relative(found.edited[path] - start[path], expected[path] - start[path]) <= 1e-2, path


def test_full_fine_tuning_is_the_oracles(case: Case, tmp_path: Path) -> None:
    config = FullConfig(steps=4, shares=(), **OPTIONS)
    requests = [case.batch(batch, 3) for batch in BATCHES]
    found, _ = sequence(full_fine_tune(case.model, config), everything(case), requests)
    facts = [[oracle_facts(FACTS)[i] for i in batch] for batch in BATCHES]
    expected = oracle_after(
        case,
        tmp_path / "model",
        lambda model: [oracle.fact_loss(model, case.checkpoint.tokenizer, batch) for batch in facts],
        steps=4,
    )
    assert_same_change(case, found, expected)


def test_continual_pretraining_is_the_oracles(cases: dict[str, Case], tmp_path: Path) -> None:
    case, config = cases["llama"], PretrainConfig(**OPTIONS | {"steps": 4})
    batches = text_batches(case)
    found, _ = sequence(continue_pretraining(case.model, config), everything(case), batches)
    rows = [torch.tensor(batch.tokens[batch.valid[:, 0]], dtype=torch.long) for batch in batches]
    assert len(rows) > 2
    assert len(rows[-1]) < len(rows[0])
    expected = oracle_after(
        case, tmp_path / "model", lambda model: [oracle.text_loss(model, part) for part in rows], steps=4
    )
    assert_same_change(case, found, expected)


def test_decay_alone_shrinks_exactly(cases: dict[str, Case]) -> None:
    """Embeddings of absent tokens get no gradient in an untied model: W_n = (1 - lr wd)^n W_0."""
    case, steps = cases["llama"], 4
    batches = text_batches(case)[:2]
    present = np.unique(np.concatenate([batch.tokens.ravel() for batch in batches]))
    absent = np.setdiff1d(np.arange(case.model.config.vocab_size), present)
    assert len(absent) > 100
    config = PretrainConfig(learning_rate=1e-2, weight_decay=0.5, steps=steps)
    found, _ = sequence(continue_pretraining(case.model, config), everything(case), batches)
    start = np.asarray(case.checkpoint.params["embedding"], np.float64)[absent]
    end = np.asarray(found.edited["embedding"], np.float64)[absent]
    shrunk = (1 - 1e-2 * 0.5) ** (steps * len(batches))
    assert np.linalg.norm(end) == pytest.approx(shrunk * np.linalg.norm(start), rel=1e-6)
    np.testing.assert_allclose(end, shrunk * start, rtol=2e-6)


class Run:
    """An editor of matrices of two layers of the tiny GPT-2 under the driver."""

    def __init__(self, case: Case, name: str) -> None:
        options = {"layers": (2,), "targets": ("attention.query", "mlp"), "learning_rate": 1e-3, "steps": 2}
        self.editor, self.batches = {
            "full-ft": (
                full_fine_tune(case.model, FullConfig(**options, shares=(), weight_decay=0.1)),
                [case.batch(batch, 2) for batch in ([0, 1], [2, 3], [4, 0], [1, 3])],
            ),
            "pretrain": (
                continue_pretraining(case.model, PretrainConfig(**options, weight_decay=0.1)),
                text_batches(case, batch=2)[:4],
            ),
        }[name]
        self.paths = case.model.parameter_paths(options["layers"], options["targets"])
        self.params = everything(case, case.model.parameter_paths((0, 1, 2)))
        self.run = chunk_function(self.editor)

    def begin(self) -> tuple[dict[str, Array], Any]:
        return jax.tree.map(jnp.copy, self.params.edited), self.editor.init(self.params)

    def go(self, carry: tuple[dict[str, Array], Any], batches: list[Any]):
        edited, state, steps = self.run(carry[0], self.params.frozen, carry[1], Chunk(stack(batches), None))
        return (edited, state), steps

    def padded(self, batch: Any, rows: int) -> Any:
        """The batch with padding from row number `rows` on, which other tokens may stand in."""
        real = np.arange(2) < rows
        if isinstance(batch, TextBatch):
            return TextBatch(np.where(real[:, None], batch.tokens, 7), batch.valid & real[:, None])
        return batch._replace(weight=batch.weight * real, tail=np.where(real[:, None, None], batch.tail, 7))


@pytest.fixture(scope="module", params=["full-ft", "pretrain"])
def run(request: pytest.FixtureRequest, gpt2: Case) -> Run:
    return Run(gpt2, request.param)


def test_chunks_of_two_and_a_saved_state_go_on_where_the_last_ended_bit_by_bit(
    run: Run, tmp_path: Path
) -> None:
    whole, steps = run.go(run.begin(), run.batches)
    carry, first = run.go(run.begin(), run.batches[:2])
    save(tmp_path / "saved", carry)
    restored = restore(tmp_path / "saved", run.begin(), fingerprint(carry))
    assert same_bits(restored, carry)
    carry, second = run.go(restored, run.batches[2:])
    assert same_bits(carry, whole)
    assert same_bits(jax.tree.map(lambda *x: jnp.concatenate(x), first, second), steps)


def test_only_the_chosen_matrices_change(run: Run) -> None:
    (edited, _), steps = run.go(run.begin(), run.batches)
    changed = {path for path in edited if not same_bits(edited[path], run.params.edited[path])}
    assert changed == set(run.paths)
    assert sorted(steps.delta_norm) == sorted(run.paths)


def test_padding_changes_nothing(run: Run) -> None:
    """Neither its content, nor an update of padding alone: no moment fades, no weight decays."""
    batch, nothing = run.batches[0], run.padded(run.batches[1], 0)
    one = run.padded(batch, 1)
    other = (
        TextBatch(np.where(one.valid, one.tokens, 9), one.valid)
        if isinstance(one, TextBatch)
        else one._replace(tail=np.where(one.weight[:, None, None] > 0, one.tail, 9))
    )
    assert same_bits(*(run.go(run.begin(), [x, run.batches[1]])[0] for x in (one, other)))
    with_gap, steps = run.go(run.begin(), [batch, nothing, run.batches[1], nothing])
    without, _ = run.go(run.begin(), run.batches[:2])
    assert same_bits(with_gap, without)
    for path in run.paths:
        assert np.array_equal(np.asarray(steps.delta_norm[path]) == 0, [False, True, False, True])


def test_pretraining_lowers_the_nll_of_its_text_and_norms_are_logged_for_all_parameters(gpt2: Case) -> None:
    params, batches = everything(gpt2), text_batches(gpt2)[::-1]
    assert not batches[0].valid.all()
    editor = continue_pretraining(gpt2.model, PretrainConfig(learning_rate=3e-3))
    chunk = Chunk(stack(batches * 4), None)
    edited, _, steps = chunk_function(editor)(
        jax.tree.map(jnp.copy, params.edited), params.frozen, editor.init(params), chunk
    )

    def nll(params: Params, batches: list[TextBatch]) -> float:
        rows = np.concatenate([batch.tokens[batch.valid[:, 0]] for batch in batches])
        return float(np.log(perplexity(gpt2.model, params, rows, batch=4)))

    real = batches[0].valid[:, 0]
    first = np.asarray(steps.metrics["loss"])[0, 0]
    assert first[real].mean() == pytest.approx(nll(params, batches[:1]), rel=1e-5)
    assert not first[~real].any()
    assert nll(Params(edited, params.frozen), batches) < nll(params, batches) - 1.0
    assert bool(steps.applied.all())
    assert sorted(steps.norm) == sorted(gpt2.model.shapes) == sorted(steps.delta_norm)
    for path, norms in steps.norm.items():
        assert norms.shape == (len(batches) * 4,)
        assert float(norms[-1]) == pytest.approx(float(np.linalg.norm(edited[path])), rel=1e-5)


def test_a_schedule_of_a_sequence_needs_its_length(gpt2: Case) -> None:
    for editor, config in ((full_fine_tune, FullConfig), (continue_pretraining, PretrainConfig)):
        with pytest.raises(ConfigError, match="give its length in optimiser steps as schedule_steps"):
            editor(gpt2.model, config(schedule="linear"))
