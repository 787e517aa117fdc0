"""Whole closed-form editors in float32 against the oracle's in float64: values, keys, residuals and solve."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.memit import emmet_config, memit_config
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.linalg import dense
from jaxedit.types import Editor
from tests.cases import FACTS, LAYER, Case, oracle_facts, relative, tuned
from tests.reference import editors as oracle
from tests.reference import layout
from tests.reference.tiny import TINY_CONTEXTS
from tests.reference.values import Settings

SETTINGS = Settings(lr=0.1, steps=6, weight_decay=0.01, clamp=4.0, stop_loss=0.0)
TOLERANCE = 1e-4
LAM = 0.5


def ours(
    case: Case, config: LocateConfig, batches: Sequence[Sequence[int]], size: int
) -> list[dict[int, np.ndarray]]:
    """Delta [in, out] by layer of every batch of facts, one after the other; batches padded to one size."""
    editor: Editor = locate_and_edit(case.model, case.moments, tuned(config, SETTINGS))
    params = case.params(config.layers)
    state, update, result = editor.init(params), jax.jit(editor.update), []
    whole = case.encode(FACTS)
    for batch in batches:
        requests = pad_requests(type(whole)(*(np.asarray(x)[list(batch)] for x in whole)), size)
        params, state, info = update(params, state, requests)
        assert bool(info.finite)
        paths = case.model.edited_paths(config.layers)
        result.append({layer: np.asarray(dense(info.delta[path])) for layer, path in paths.items()})
    return result


def assert_same(found: dict[int, np.ndarray], expected: dict[int, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for layer, delta in expected.items():
        assert relative(found[layer], delta.T) <= TOLERANCE


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_rome_and_r_rome(case: Case, name: str) -> None:
    config, edit = {"rome": (rome_config, oracle.rome), "r-rome": (r_rome_config, oracle.r_rome)}[name]
    found = ours(case, config(LAYER), [[0], [3], [4]], 1)
    with layout.restored(case.oracle, [LAYER]):
        for number, deltas in zip((0, 3, 4), found, strict=True):
            fact = oracle_facts(FACTS)[number]
            tokenizer = case.checkpoint.tokenizer
            expected = edit(case.oracle, tokenizer, fact, TINY_CONTEXTS, LAYER, case.C0[LAYER], SETTINGS)
            assert_same(deltas, expected)


def test_emmet_of_one_fact_and_of_several(case: Case) -> None:
    batches = ([2], [0, 3, 4])
    found = ours(case, emmet_config(LAYER, LAM), batches, 3)
    with layout.restored(case.oracle, [LAYER]):
        for batch, deltas in zip(batches, found, strict=True):
            facts = [oracle_facts(FACTS)[i] for i in batch]
            tokenizer = case.checkpoint.tokenizer
            expected = oracle.emmet(
                case.oracle, tokenizer, facts, TINY_CONTEXTS, LAYER, case.C0[LAYER], SETTINGS, LAM, eps=0.1
            )
            assert_same(deltas, expected)


@pytest.mark.parametrize("memory", [False, True], ids=["alone", "with memory"])
def test_memit_over_several_layers_and_batches(case: Case, memory: bool) -> None:
    batches = ([0, 3, 4], [1, 2])
    found = ours(case, replace(memit_config(case.span, LAM, memory), lam_n=0.01), batches, 3)
    remembered: oracle.Memory | None = {} if memory else None
    with layout.restored(case.oracle, case.span):
        for batch, deltas in zip(batches, found, strict=True):
            expected = oracle.memit(
                case.oracle,
                case.checkpoint.tokenizer,
                [oracle_facts(FACTS)[i] for i in batch],
                TINY_CONTEXTS,
                case.span,
                case.C0,
                SETTINGS,
                LAM,
                lam_n=0.01,
                memory=remembered,
            )
            assert_same(deltas, expected)
