"""Whole editors on the tiny models, their updates transformed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.editors.rome import r_rome_config
from jaxedit.editors.transforms import (
    build_transforms,
    chain,
    clip_norm,
    identity,
    mose,
    prune,
    rect,
    revive,
    spectrum_lock,
    sphere,
)
from jaxedit.errors import ConfigError
from jaxedit.linalg import dense
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import EditInfo, Editor, LowRank, Params, Requests
from tests.cases import FACTS, LAYER, Case, oracle_facts, relative, same_bits
from tests.reference import layout
from tests.reference import transforms as oracle
from tests.reference.tiny import TINY_CONTEXTS
from tests.reference.values import Settings

SETTINGS = Settings(lr=0.1, steps=4, weight_decay=0.01, clamp=4.0, stop_loss=0.0)
LAM = 0.5
SPAN = (0, 1)
BATCHES = ([0, 1, 2], [3, 4])
CONTEXTS = ("", "Because of it")


def tuned(config: LocateConfig) -> LocateConfig:
    """The oracle's settings of the value optimisation."""
    values = replace(
        config.values,
        learning_rate=SETTINGS.lr,
        steps=SETTINGS.steps,
        weight_decay=SETTINGS.weight_decay,
        clamp=SETTINGS.clamp,
        kl=SETTINGS.kl,
        stop_loss=SETTINGS.stop_loss,
    )
    return replace(config, values=values)


def editor_of(case: Case, name: str) -> tuple[Editor, tuple[int, ...]]:
    """The editor and its layers."""
    if name == "ft":
        config = FineTuneConfig((LAYER,), learning_rate=1e-3, steps=3, stop_loss=0.0)
        return fine_tune(case.model, config), (LAYER,)
    located = memit_config(SPAN, LAM, memory=True) if name == "memit" else r_rome_config(LAYER)
    return locate_and_edit(case.model, case.moments, tuned(located)), located.layers


def batch(case: Case, facts: Sequence[int], size: int = 3, contexts: Sequence[str] = CONTEXTS) -> Requests:
    whole = case.encode(FACTS, contexts)
    return pad_requests(type(whole)(*(np.asarray(x)[list(facts)] for x in whole)), size)


def once(editor: Editor, params: Params, requests: Requests) -> tuple[Params, Any, EditInfo]:
    return jax.jit(editor.update)(params, editor.init(params), requests)


@pytest.mark.parametrize("name", ["memit", "r-rome", "ft"])
def test_identity_changes_no_bit(gpt2: Case, name: str) -> None:
    editor, layers = editor_of(gpt2, name)
    params, requests = gpt2.params(layers), batch(gpt2, BATCHES[0])
    bare_params, bare_state, bare = once(editor, params, requests)
    same_params, same_state, same = once(chain(editor, identity()), params, requests)
    assert same_bits(same_params, bare_params)
    assert same_bits(same.delta, bare.delta)
    assert same_bits(same_state.editor, bare_state)
    assert same_bits({key: same.metrics[key] for key in bare.metrics}, bare.metrics)
    for path, delta in bare.delta.items():
        norm = np.linalg.norm(np.asarray(dense(delta), np.float64))
        assert float(same.metrics[f"proposed_norm/{path}"]) == pytest.approx(norm, rel=1e-5)


LONG = ("compensate:rect:0.5", "sphere", "clip-norm:0.5", "spectral-cap", "spectrum-lock", "prune")


@pytest.mark.parametrize("name", ["memit", "r-rome", "ft"])
def test_a_long_chain_runs_in_the_driver_compiles_once_and_repeats_bit_by_bit(gpt2: Case, name: str) -> None:
    editor, layers = editor_of(gpt2, name)
    editor = chain(editor, *build_transforms(LONG, gpt2.model, gpt2.moments))
    params = gpt2.params(layers)
    nothing = batch(gpt2, [], 3)
    requests = [batch(gpt2, facts) for facts in BATCHES]
    run = chunk_function(editor)

    def whole() -> tuple[Any, Any, Any]:
        edited, state = jax.tree.map(jnp.copy, (params.edited, editor.init(params)))
        steps = []
        for chunk in (requests, [requests[0], nothing]):
            edited, state, account = run(edited, params.frozen, state, Chunk(stack(chunk), None))
            steps.append(account)
        return edited, state, steps

    edited, state, steps = whole()
    assert same_bits(whole(), (edited, state, steps))
    assert run._cache_size() == 1  # type: ignore[attr-defined]
    assert all(np.asarray(account.finite).all() for account in steps)
    for path, start in params.edited.items():
        spectrum = np.linalg.svd(np.asarray(start, np.float64), compute_uv=False)
        found = np.linalg.svd(np.asarray(edited[path], np.float64), compute_uv=False)
        assert np.abs(found - spectrum).max() <= 1e-6 * spectrum[0]
        assert relative(edited[path], start) > 1e-3
        assert float(steps[1].delta_norm[path][1]) == 0.0, "the update of padding"
        assert (np.asarray(steps[0].metrics[f"proposed_norm/{path}"]) > 0).all()
    final = jax.jit(editor.finalize)(Params(edited, params.frozen), state)
    assert sorted(final.edited) == sorted(edited)


def test_separable_transforms_keep_memits_updates_low_rank(gpt2: Case) -> None:
    editor, layers = editor_of(gpt2, "memit")
    params = gpt2.params(layers)
    _, _, info = once(chain(editor, revive(0.5), sphere(), clip_norm(0.1)), params, batch(gpt2, BATCHES[0]))
    for path, delta in info.delta.items():
        assert isinstance(delta, LowRank)
        assert delta.left.shape == (params.edited[path].shape[0], 3)


def test_padding_a_batch_changes_no_result(gpt2: Case) -> None:
    editor, layers = editor_of(gpt2, "memit")
    editor, params = chain(editor, sphere(), spectrum_lock()), gpt2.params(layers)
    (_, _, few), (_, _, padded) = (once(editor, params, batch(gpt2, [0, 1], size)) for size in (2, 3))
    for path, delta in few.delta.items():
        assert relative(padded.delta[path], delta) <= 1e-5


POSTS: dict[str, tuple[Callable[[], Any], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "sphere": (lambda: sphere(0.8, 0.5), lambda D, W: oracle.sphere(D, W, 0.8, 0.5)),
    "revive": (lambda: revive(0.5), lambda D, W: oracle.revive(D, W, 0.5)),
    "clip": (lambda: clip_norm(0.05), lambda D, W: D * min(1.0, 0.05 / float(D.norm()))),
}


@pytest.mark.parametrize("name", POSTS)
def test_memits_next_layer_is_solved_on_what_was_written(case: Case, name: str) -> None:
    """Parity over a span of layers with the oracle, which transforms each layer before it solves the next."""
    ours, theirs = POSTS[name]
    config = tuned(memit_config(case.span, LAM))
    editor, params = locate_and_edit(case.model, case.moments, config), case.params(case.span)
    _, _, info = once(chain(editor, ours()), params, batch(case, BATCHES[0], contexts=TINY_CONTEXTS))
    _, _, bare = once(editor, params, batch(case, BATCHES[0], contexts=TINY_CONTEXTS))
    last = case.span[-1]
    with layout.restored(case.oracle, case.span):
        expected = oracle.memit(
            case.oracle,
            case.checkpoint.tokenizer,
            [oracle_facts(FACTS)[i] for i in BATCHES[0]],
            TINY_CONTEXTS,
            case.span,
            case.C0,
            SETTINGS,
            LAM,
            theirs,
        )
    for layer, path in case.model.edited_paths(case.span).items():
        assert relative(dense(info.delta[path]), expected[layer].T) <= 1e-4
    name_of_last = f"residual_norm/{last}"
    assert (info.metrics[name_of_last] > bare.metrics[name_of_last] * 1.001).all(), (
        "it makes up for the first"
    )


def test_editors_of_one_layer_do_the_same_inside_the_loop_and_after_it(gpt2: Case) -> None:
    editor, layers = editor_of(gpt2, "r-rome")
    params, requests = gpt2.params(layers), batch(gpt2, [0], 1)
    inside = once(chain(editor, sphere(), rect(0.4)), params, requests)
    after = once(chain(editor._replace(layerwise=None), sphere(), rect(0.4)), params, requests)
    for path, delta in inside[2].delta.items():
        assert relative(after[2].delta[path], delta) <= 1e-6
        assert relative(after[0].edited[path], inside[0].edited[path]) <= 1e-7


def test_mose_rotates_with_the_keys_and_layers_of_memit(gpt2: Case) -> None:
    editor, layers = editor_of(gpt2, "memit")
    (turn,) = build_transforms(["mose:0.1"], gpt2.model, gpt2.moments)
    params = gpt2.params(layers)
    after, _, info = once(chain(editor, turn), params, batch(gpt2, BATCHES[0]))
    assert bool(info.finite)
    for path, start in params.edited.items():
        spectrum = np.linalg.svd(np.asarray(start, np.float64), compute_uv=False)
        found = np.linalg.svd(np.asarray(after.edited[path], np.float64), compute_uv=False)
        assert np.abs(found - spectrum).max() <= 1e-6 * spectrum[0]
        assert relative(after.edited[path], start) > 1e-3


def test_a_transform_that_needs_keys_is_refused_where_there_are_none(gpt2: Case) -> None:
    editor, _ = editor_of(gpt2, "ft")
    with pytest.raises(
        ConfigError, match="computed from keys and residuals, which this editor does not have"
    ):
        chain(editor, prune(), mose({}))
