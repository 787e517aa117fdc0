"""Whole editors on the tiny models, their updates transformed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.locate import locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.editors.rome import r_rome_config
from jaxedit.editors.transforms import (
    Transform,
    build_transforms,
    chain,
    identity,
    mose,
    prune,
    revive,
    sphere,
)
from jaxedit.errors import ConfigError
from jaxedit.linalg import dense
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import EditInfo, Editor, LowRank, Params, Requests
from tests.cases import FACTS, LAYER, Case, oracle_facts, relative, same_bits, tuned
from tests.reference import layout
from tests.reference import transforms as oracle
from tests.reference.tiny import TINY_CONTEXTS
from tests.reference.values import Settings

SETTINGS = Settings(lr=0.1, steps=4, weight_decay=0.01, clamp=4.0, stop_loss=0.0)
LAM = 0.5
SPAN = (0, 1)
BATCHES = ([0, 1, 2], [3, 4])
CONTEXTS = ("", "Because of it")


def editor_of(case: Case, name: str) -> tuple[Editor, tuple[int, ...]]:
    """The editor and its layers."""
    if name == "ft":
        config = FineTuneConfig((LAYER,), learning_rate=1e-3, steps=3, stop_loss=0.0)
        return fine_tune(case.model, config), (LAYER,)
    located = memit_config(SPAN, LAM, memory=True) if name == "memit" else r_rome_config(LAYER)
    return locate_and_edit(case.model, case.moments, tuned(located, SETTINGS)), located.layers


def batch(case: Case, facts: Sequence[int], size: int = 3, contexts: Sequence[str] = CONTEXTS) -> Requests:
    whole = case.encode(FACTS, contexts)
    return pad_requests(type(whole)(*(np.asarray(x)[list(facts)] for x in whole)), size)


def once(editor: Editor, params: Params, requests: Requests) -> tuple[Params, Any, EditInfo]:
    return jax.jit(editor.update)(params, editor.init(params), requests)


def test_identity_changes_no_bit(gpt2: Case) -> None:
    """Of an editor whose matrices are not, to the bit, the old ones plus the delta."""
    editor, layers = editor_of(gpt2, "ft")
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


CHAINS = {
    "memit": ("compensate:rect:0.5", "sphere", "clip-norm:0.5", "spectral-cap", "spectrum-lock", "prune"),
    "r-rome": ("mose:0.1", "null-space", "revive:0.5", "norm-lock", "spectrum-lock"),
    "ft": ("compensate:rect:0.5", "sphere", "clip-norm:0.5", "spectral-cap", "spectrum-lock", "prune"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_long_chain_runs_in_the_driver_compiles_once_and_repeats_bit_by_bit(gpt2: Case, name: str) -> None:
    editor, layers = editor_of(gpt2, name)
    editor = chain(editor, *build_transforms(CHAINS[name], gpt2.model, gpt2.moments))
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
    assert all(np.asarray(account.applied).all() for account in steps)
    for path, start in params.edited.items():
        spectrum = np.linalg.svd(np.asarray(start, np.float64), compute_uv=False)
        found = np.linalg.svd(np.asarray(edited[path], np.float64), compute_uv=False)
        assert np.abs(found - spectrum).max() <= 1e-6 * spectrum[0]
        assert relative(edited[path], start) > 1e-3
        assert float(steps[1].delta_norm[path][1]) == 0.0, "the update of padding"
        assert (np.asarray(steps[0].metrics[f"proposed_norm/{path}"]) > 0).all()
    final = jax.jit(editor.finalize)(Params(edited, params.frozen), state)
    assert sorted(final.edited) == sorted(edited)


POSTS: dict[str, tuple[Transform, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "gpt2": (sphere(0.8, 0.5), lambda D, W: oracle.sphere(D, W, 0.8, 0.5)),
    "llama": (revive(0.5), lambda D, W: oracle.revive(D, W, 0.5)),
}


def test_memits_next_layer_is_solved_on_what_was_written(case: Case) -> None:
    """Parity over a span of layers with the oracle, which transforms each layer before it solves the next."""
    ours, theirs = POSTS[case.name]
    config = tuned(memit_config(case.span, LAM), SETTINGS)
    editor = chain(locate_and_edit(case.model, case.moments, config), ours)
    params = case.params(case.span)
    _, _, info = once(editor, params, batch(case, BATCHES[0], contexts=TINY_CONTEXTS))
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
        delta = info.delta[path]
        assert isinstance(delta, LowRank)
        assert delta.left.shape == (params.edited[path].shape[0], len(BATCHES[0]))
        assert relative(dense(delta), expected[layer].T) <= 1e-4


def test_a_transform_that_needs_keys_is_refused_where_there_are_none(gpt2: Case) -> None:
    editor, _ = editor_of(gpt2, "ft")
    with pytest.raises(
        ConfigError, match="computed from keys and residuals, which this editor does not have"
    ):
        chain(editor, prune(), mose({}))
