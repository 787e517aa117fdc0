"""Laws of whole editors: identities between methods, what an edit may touch, padding, order, precision."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import pad_requests
from jaxedit.editors.closed_form import preservation, remember, solve, write
from jaxedit.editors.locate import LocateConfig, locate_and_edit
from jaxedit.editors.lyaplock import LyapLockConfig, lyaplock, lyaplock_config
from jaxedit.editors.memit import emmet_config, memit_config
from jaxedit.editors.rome import r_rome_config, rome_config
from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.linalg import dense
from jaxedit.statistics import init as init_moments
from jaxedit.statistics import update as update_moments
from jaxedit.types import EditInfo, Editor, Params, Requests
from tests.cases import FACTS, LAYER, Case, equations, relative, same_bits

LAM = 0.5
LAYERS = (0, 1)


def quick(config: LocateConfig, steps: int = 4) -> LocateConfig:
    values = replace(config.values, learning_rate=0.1, steps=steps, weight_decay=0.01, shares=())
    return replace(config, values=values)


def editor_of(case: Case, config: LocateConfig) -> Editor:
    return locate_and_edit(case.model, case.moments, quick(config))


def take(requests: Requests, facts: list[int]) -> Requests:
    return Requests(*(np.asarray(x)[facts] for x in requests))


def dense_deltas(info: EditInfo) -> dict[str, np.ndarray]:
    return {path: np.asarray(dense(delta)) for path, delta in info.delta.items()}


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_r_rome_is_emmet_with_one_fact_and_no_eps_and_rome_is_not(gpt2: Case, name: str) -> None:
    """Given the same values and means; the scale of the second moment does not matter."""
    config = {"rome": rome_config, "r-rome": r_rome_config}[name](LAYER)
    emmet = replace(emmet_config(LAYER, lam=7.0, eps=0.1), key_mean="plain", values=config.values)
    requests, params, found = gpt2.encode(FACTS[:1]), gpt2.params([LAYER]), []
    for one in (config, emmet):
        editor = editor_of(gpt2, one)
        _, _, info = jax.jit(editor.update)(params, editor.init(params), requests)
        found.append(dense_deltas(info)[f"layers.{LAYER}.mlp.down.kernel"])
    difference = relative(*found)
    assert difference <= 1e-6 if name == "r-rome" else difference > 1e-2


class Shared:
    """A compiled MEMIT with memory over two layers, for batches of five facts; several laws use it."""

    def __init__(self, case: Case) -> None:
        self.editor = editor_of(case, memit_config(LAYERS, LAM, memory=True))
        self.params = case.params(LAYERS)
        self.state = self.editor.init(self.params)
        self.requests = case.encode(FACTS)
        self.update = jax.jit(self.editor.update)

    def __call__(self, requests: Requests) -> tuple[Params, Any, EditInfo]:
        return self.update(self.params, self.state, requests)


@pytest.fixture(scope="module")
def memit(gpt2: Case) -> Shared:
    return Shared(gpt2)


def test_permuting_facts_permutes_results(memit: Shared) -> None:
    order = [3, 1, 4, 0, 2]
    params, state, info = memit(memit.requests)
    permuted_params, permuted_state, permuted = memit(take(memit.requests, order))
    for path, delta in dense_deltas(info).items():
        assert relative(dense_deltas(permuted)[path], delta) <= 1e-5
        assert relative(permuted_params.edited[path], params.edited[path]) <= 1e-6
        assert relative(permuted_state[path].inverse, state[path].inverse) <= 1e-5
    for name, values in info.metrics.items():
        expected = np.asarray(values)[..., order]
        np.testing.assert_allclose(permuted.metrics[name], expected, rtol=1e-4, err_msg=name)


def test_padding_a_batch_changes_no_result(gpt2: Case, memit: Shared) -> None:
    few = take(memit.requests, [0, 1, 2])
    params, state, info = memit(pad_requests(few, 5))
    _, bare_state, bare = jax.jit(memit.editor.update)(memit.params, memit.state, few)
    for path, delta in dense_deltas(bare).items():
        assert relative(dense_deltas(info)[path], delta) <= 1e-5
        assert relative(state[path].inverse, bare_state[path].inverse) <= 1e-6
    for name, values in bare.metrics.items():
        np.testing.assert_allclose(info.metrics[name][..., :3], values, rtol=1e-4, err_msg=name)
    assert bool(info.finite)
    assert all(np.isfinite(w).all() for w in params.edited.values())


def test_a_batch_of_padding_is_no_edit(memit: Shared) -> None:
    nothing = pad_requests(take(memit.requests, []), 5)
    params, state, info = memit(nothing)
    assert bool(info.finite)
    assert all(not delta.any() for delta in dense_deltas(info).values())
    for path, matrix in memit.params.edited.items():
        assert np.array_equal(params.edited[path], matrix)
    for path, kept in memit.state.items():
        assert relative(state[path].inverse, kept.inverse) <= 1e-14


def test_memory_makes_later_edits_spare_earlier_keys(gpt2: Case, memit: Shared) -> None:
    """Without it the state stays as it is; with it the second update moves the first's keys less."""
    plain = editor_of(gpt2, memit_config(LAYERS, LAM, memory=False))
    params, requests = memit.params, memit.requests
    _, state, _ = jax.jit(plain.update)(params, memit.state, requests)
    assert same_bits(state, memit.state)
    first, second = (pad_requests(take(requests, facts), 5) for facts in ([0, 1, 2], [3, 4]))
    now, remembering, _ = memit(first)
    deltas = [dense_deltas(memit.update(now, state, second)[2]) for state in (remembering, memit.state)]
    for path in memit.state:
        with_memory, without = (np.asarray(state[path].inverse) for state in (remembering, memit.state))
        gram = np.linalg.inv(with_memory) - np.linalg.inv(
            without
        )  # K K^T of the first batch, as it was solved
        moved = [np.sqrt(np.trace(delta[path].T @ gram @ delta[path])) for delta in deltas]
        assert moved[0] < 0.5 * moved[1]
    _, remembered, _ = memit(requests)
    for path, kept in memit.state.items():
        shrunk = np.asarray(kept.inverse) - np.asarray(remembered[path].inverse)
        eigenvalues = np.linalg.eigvalsh(shrunk)
        assert eigenvalues.min() >= -1e-9 * eigenvalues.max()
        assert (eigenvalues > 1e-6 * eigenvalues.max()).sum() == len(FACTS)


def test_no_product_in_float32_or_float64_is_below_highest_precision(gpt2: Case) -> None:
    """Read off the jaxprs of the solver, the statistics and a whole update, gradient included."""
    moment, keys, weight = gpt2.moments[0], jnp.ones((2, 96)), jnp.ones(2)
    kept = preservation(moment, 1.0)
    blocks, valid = jnp.asarray(gpt2.blocks[:2]), jnp.ones(gpt2.blocks[:2].shape, bool)
    editor, params, requests = (
        editor_of(gpt2, memit_config(LAYERS, LAM, True)),
        gpt2.params(LAYERS),
        gpt2.encode(FACTS),
    )
    traced = {
        "preservation": jax.make_jaxpr(lambda m: preservation(m, 1.0))(moment),
        "solve": jax.make_jaxpr(solve)(kept, keys),
        "remember": jax.make_jaxpr(remember)(kept, keys, solve(kept, keys)),
        "write": jax.make_jaxpr(lambda k, s: write(s, k, k, 1.0, weight))(keys, solve(kept, keys)),
        "statistics": jax.make_jaxpr(lambda p, m: update_moments(gpt2.model, p, m, blocks, valid))(
            gpt2.checkpoint.params, init_moments(gpt2.model, LAYERS)
        ),
        "update": jax.make_jaxpr(editor.update)(params, editor.init(params), requests),
    }
    for name, jaxpr in traced.items():
        products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
        assert products, f"{name}: no product was found"
        for product in products:
            asked = product.params["precision"]
            assert asked is not None, f"{name}: {product}"
            assert set(asked) == {jax.lax.Precision.HIGHEST}, f"{name}: {product}"


def test_solver_works_in_float64_inside_the_compiled_update(gpt2: Case) -> None:
    editor, params, requests = (
        editor_of(gpt2, memit_config(LAYERS, LAM, True)),
        gpt2.params(LAYERS),
        gpt2.encode(FACTS),
    )
    state = editor.init(params)
    assert all(kept.inverse.dtype == jnp.float64 for kept in state.values())
    jaxpr = jax.make_jaxpr(jax.jit(editor.update))(params, state, requests)
    solves = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in ("lu", "triangular_solve", "cholesky")]
    assert solves
    assert {str(variable.aval.dtype) for e in solves for variable in e.invars} == {"float64"}


def test_second_moments_that_are_missing_or_of_another_model_are_refused(gpt2: Case) -> None:
    with pytest.raises(StatisticsError, match=r"no second moment for layer 1; there are layers \[0\]"):
        locate_and_edit(gpt2.model, {0: gpt2.moments[0]}, memit_config((0, 1), LAM))
    with pytest.raises(StatisticsError, match=r"layer 0 is \(8, 8\), the model's keys have width 96"):
        locate_and_edit(gpt2.model, {0: jnp.eye(8)}, memit_config((0,), LAM))
    with pytest.raises(ConfigError, match="layer 3 is out of range: the model has layers 0 to 2"):
        locate_and_edit(gpt2.model, gpt2.moments, memit_config((2, 3), LAM))


@pytest.mark.parametrize("name", ["memit", "lyaplock"])
@pytest.mark.parametrize(
    ("tokens", "silent"), [(960, 2), (40, 0)], ids=["neurons that never fire", "fewer tokens than neurons"]
)
def test_a_second_moment_without_inverse_is_refused_before_any_fact_is(
    gpt2: Case, name: str, tokens: int, silent: int
) -> None:
    keys = np.random.default_rng(0).standard_normal((tokens, 96)).astype(np.float32)
    keys[:, :silent] = 0
    moments = {0: gpt2.moments[0], 1: jnp.asarray(keys.T @ keys / tokens)}
    config = {"memit": memit_config, "lyaplock": lyaplock_config}[name]((0, 1), LAM)
    solver = lyaplock(config) if isinstance(config, LyapLockConfig) else None
    params, editor = gpt2.params((0, 1)), locate_and_edit(gpt2.model, moments, config, solver)
    with pytest.raises(
        StatisticsError, match=rf"layer 1 has no inverse: {silent} of its 96 neurons .* more tokens .* lam_n"
    ):
        editor.init(params)
    if name == "memit":
        ridged = locate_and_edit(gpt2.model, moments, replace(config, lam_n=0.1)).init(params)
        assert all(np.isfinite(kept.inverse).all() for kept in ridged.values())
