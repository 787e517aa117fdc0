"""Editors on every family: a closed form against the oracle, what is written behind a norm, sequences of edits."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import pad_requests
from jaxedit.editors import METHODS, Settings
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.linalg import dense
from jaxedit.lookup import bare_rows, rows_of, split_pass
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.types import Requests
from tests.cases import BUILDERS, FACTS, FAMILIES, LAYER, Case, oracle_facts, relative, tuned
from tests.editors.rows import make_row
from tests.editors.test_parity import LAM, SETTINGS
from tests.reference import editors as oracle
from tests.reference import layout
from tests.reference.tiny import TINY_CONTEXTS

TOLERANCE = 1e-4
QUICK = ("gptj", "gemma3_text")
OTHERS = sorted(FAMILIES.keys() - set(QUICK))
BEHIND_NORMS = ["olmo2", pytest.param("gemma2", marks=pytest.mark.slow)]
EDITS = 20


def batch_of(case: Case, facts: Sequence[int], size: int) -> Requests:
    whole = case.encode(FACTS)
    chosen = pad_requests(type(whole)(*(np.asarray(x)[list(facts)] for x in whole)), size)
    return jax.tree.map(jnp.asarray, chosen)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_r_rome_is_the_oracles(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    editor = locate_and_edit(case.model, case.moments, tuned(r_rome_config(LAYER), SETTINGS))
    params, tokenizer = case.params([LAYER]), case.checkpoint.tokenizer
    path = case.model.config.edited_path(LAYER)
    _, _, info = jax.jit(editor.update)(params, editor.init(params), batch_of(case, [3], 1))
    assert bool(info.finite)
    with layout.restored(case.oracle, [LAYER]):
        expected = oracle.r_rome(
            case.oracle, tokenizer, oracle_facts(FACTS)[3], TINY_CONTEXTS, LAYER, case.C0[LAYER], SETTINGS
        )
    assert relative(dense(info.delta[path]), expected[LAYER].T) <= TOLERANCE


@pytest.mark.parametrize("name", BEHIND_NORMS)
def test_memit_behind_a_norm_is_the_oracles(case_of: Callable[[str], Case], name: str) -> None:
    """Two layers, two batches, the keys of the first remembered."""
    case, layers, batches = case_of(name), (0, 1), ([0, 3], [1])
    editor = locate_and_edit(
        case.model, case.moments, tuned(memit_config(layers, LAM, memory=True), SETTINGS)
    )
    params, update = case.params(layers), jax.jit(editor.update)
    state, memory = editor.init(params), {}
    with layout.restored(case.oracle, layers):
        for batch in batches:
            params, state, info = update(params, state, batch_of(case, batch, 2))
            expected = oracle.memit_behind_norms(
                case.oracle,
                case.checkpoint.tokenizer,
                [oracle_facts(FACTS)[i] for i in batch],
                TINY_CONTEXTS,
                layers,
                case.C0,
                SETTINGS,
                LAM,
                memory=memory,
            )
            for layer, path in case.model.edited_paths(layers).items():
                assert relative(dense(info.delta[path]), expected[layer].T) <= TOLERANCE


@pytest.mark.parametrize("name", BEHIND_NORMS)
def test_what_is_asked_of_the_matrix_is_what_it_then_gives(case_of: Callable[[str], Case], name: str) -> None:
    """ROME's constraint is exact: at the bare prompt's key the matrix gives the value, before any norm."""
    case, requests = case_of(name), batch_of(case_of(name), [3], 1)
    editor = locate_and_edit(case.model, case.moments, tuned(rome_config(LAYER), SETTINGS))

    @jax.jit
    def asked_and_given(params):
        def value(params):
            trace = split_pass(case.model.bind(params), rows_of(requests), LAYER, LAYER).trace
            return trace.mlp[LAYER][bare_rows(requests), 0]

        def keep(site, delta, _):
            return delta, site.solved.residual

        edited, _, _, residual = editor.layerwise(params, editor.init(params), requests, keep, jnp.zeros(()))
        return residual, value(edited) - value(params)

    asked, given = asked_and_given(case.params([LAYER]))
    assert relative(given, asked) <= TOLERANCE


@pytest.mark.parametrize("name", ["memit", "pmet", "memit-blue", "rome"])
def test_values_are_those_of_the_matrix_where_a_norm_follows(
    case_of: Callable[[str], Case], gpt2: Case, name: str
) -> None:
    given = METHODS[name].configure(gpt2.model.config)
    assert given == METHODS[name].preset(gpt2.model.config), "no norm follows, nothing changes"
    fitted = METHODS[name].configure(case_of("olmo2").model.config, Settings(layers=given.layers))
    assert isinstance(fitted, LocateConfig)
    assert fitted.values.site == {"pmet": "attention+mlp"}.get(name, "mlp")
    assert fitted.values_at == {"memit-blue": "each"}.get(name, "shared")


@pytest.mark.slow
@pytest.mark.parametrize("editor", ["memit-history", "ft", "lora", "mend"])
@pytest.mark.parametrize("name", sorted(BUILDERS | FAMILIES))
def test_twenty_edits_in_sequence(case_of: Callable[[str], Case], name: str, editor: str) -> None:
    row = make_row(editor, case_of(name))
    chunk = Chunk(stack(list(itertools.islice(itertools.cycle(row.batches), EDITS))), None)
    edited, state = jax.tree.map(lambda x: x.copy(), (row.params.edited, row.state))
    edited, _, steps = chunk_function(row.editor)(edited, row.params.frozen, state, chunk)
    assert np.asarray(steps.applied).all()
    assert all(np.isfinite(norms).all() for norms in steps.delta_norm.values())
    for path in row.paths:
        moved = float(jnp.linalg.norm(edited[path] - row.params.edited[path]))
        assert np.isfinite(moved)
        assert moved > 0
