"""MEND and MALMEN against the oracle given the same network, and what an untrained one does."""

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.features import Features, Pairs, token_features
from jaxedit.editors.hyperedit import hypernetwork
from jaxedit.editors.hypernet import HyperConfig, Hypernet, fold_pairs, fresh, shift
from jaxedit.editors.malmen import malmen_config
from jaxedit.editors.mend import mend_config
from jaxedit.editors.regression import smoother
from jaxedit.errors import StatisticsError
from jaxedit.linalg import dense
from jaxedit.types import LowRank, Params, Requests
from tests.cases import FACTS, Case, oracle_facts, relative, same_bits
from tests.reference import hypernets as oracle
from tests.reference.factors import Matrix, add, factors

LAYERS = (0, 2)
BATCHES = ([0, 3], [4, 1])
TOLERANCE = 1e-4
RANK = 8


look = jax.jit(token_features, static_argnums=(0, 3, 4))
untrained = jax.jit(fresh, static_argnums=(0, 1))


def config_of(case: Case, name: str) -> HyperConfig:
    if name == "mend":
        return replace(mend_config(LAYERS, case.model.config.gated_mlp, RANK), learning_rate=3e-2)
    return replace(malmen_config(LAYERS, RANK), learning_rate=1e-2)


def requests_of(case: Case, batch: list[int], size: int = 3) -> Requests:
    whole = case.encode(FACTS, ("",))
    return pad_requests(Requests(*(np.asarray(x)[batch] for x in whole)), size)


def params_of(case: Case, config: HyperConfig) -> Params:
    return case.model.split(case.checkpoint.params, case.model.parameter_paths(config.layers, config.targets))


def features_of(case: Case, config: HyperConfig, batch: list[int]) -> Features:
    paths = case.model.parameter_paths(config.layers, config.targets)
    return look(case.model, params_of(case, config), requests_of(case, batch, 5), paths, config.tokens)


def some_net(case: Case, config: HyperConfig) -> Hypernet:
    """As a training might leave it: no number where it began, moments of all facts."""
    start = untrained(case.model, config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(start.net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        x * (1 + 0.1 * jax.random.normal(k, x.shape)) + 0.02 * jax.random.normal(k, x.shape) * (x.ndim > 0)
        for x, k in zip(leaves, keys, strict=True)
    ]
    net = jax.tree.unflatten(tree, noisy)
    net = net._replace(log_ridge={path: jnp.float32(-0.5 + 0.1 * i) for i, path in enumerate(net.log_ridge)})
    return Hypernet(net, jax.jit(fold_pairs)(start.running, features_of(case, config, [0, 1, 2, 3, 4]).pairs))


def expected_delta(net: Hypernet, path: str, tokens: list[oracle.Token]) -> torch.Tensor:
    shape = f"{len(tokens[0].u)}x{len(tokens[0].v)}"
    member = [p for p in sorted(net.net.rate) if p in net.net.rate and width_of(net, p) == shape].index(path)
    layers = [
        oracle.Layer(*map(exact, (b.into, b.out, b.bias, b.scale[member], b.shift[member])))
        for b in net.net.blocks[shape]
    ]
    running = net.running[shape]
    spread = oracle.Spread(exact(running.mean), (exact(running.squares) / (int(running.total) - 1)).sqrt())
    rate = float(net.net.rate[path])
    if path in net.net.log_ridge:
        return oracle.malmen(layers, spread, rate, float(net.net.log_ridge[path]), tokens)
    return oracle.mend(layers, spread, rate, tokens)


def width_of(net: Hypernet, path: str) -> str:
    """The one shape of two whose matrices read (up, gate) or write (down) the residual stream."""
    shapes = sorted(net.net.blocks, key=lambda shape: int(shape.split("x")[0]))
    return shapes[-1 if ".down." in path else 0]


def exact(x: jax.Array) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def matrix_of(path: str) -> Matrix:
    _, layer, *name, _ = path.split(".")
    return int(layer), ".".join(name)


@pytest.mark.parametrize("name", ["mend", "malmen"])
def test_edits_beside_padding_are_the_oracles_given_the_same_network(case: Case, name: str) -> None:
    config = config_of(case, name)
    net = some_net(case, config)
    editor = hypernetwork(case.model, net, config)
    params, update = params_of(case, config), jax.jit(editor.update)
    state, model = editor.init(params), copy.deepcopy(case.oracle)
    for batch in BATCHES:
        params, state, info = update(params, state, requests_of(case, batch))
        tokens = factors(
            model,
            case.checkpoint.tokenizer,
            [oracle_facts(FACTS)[i] for i in batch],
            [matrix_of(path) for path in info.delta],
            config.tokens,
        )
        for path, delta in info.delta.items():
            expected = expected_delta(net, path, tokens[matrix_of(path)])
            assert relative(dense(delta), expected) <= TOLERANCE
            add(model, matrix_of(path), expected)
    assert same_bits(state, net)


def test_untrained_mend_is_gradient_descent_on_plain_and_then_on_normalised_factors(gpt2: Case) -> None:
    config = config_of(gpt2, "mend")
    start, features = untrained(gpt2.model, config, jax.random.key(0)), features_of(gpt2, config, [0, 3])
    changes = jax.jit(shift, static_argnums=3)(start.net, start.running, features.pairs, config.affine)
    for path, pairs in features.pairs.items():
        gradient = np.asarray(pairs.key, np.float64).T @ pairs.gradient
        assert relative(dense(changes[path]), -config.learning_rate * gradient) <= 1e-5
    running = jax.jit(fold_pairs)(start.running, features.pairs)
    changes = jax.jit(shift, static_argnums=3)(start.net, running, features.pairs, config.affine)
    for path, pairs in features.pairs.items():
        moments = running[pairs.shape]
        std = np.sqrt(np.asarray(moments.squares, np.float64) / (int(moments.total) - 1))
        normal = (np.asarray(pairs.joined, np.float64) - moments.mean) / np.where(std > 0, std, 1)
        normal = normal[np.asarray(pairs.real)]
        split = pairs.key.shape[-1]
        expected = -config.learning_rate * normal[:, :split].T @ normal[:, split:]
        assert relative(dense(changes[path]), expected) <= 1e-4


@pytest.mark.parametrize("name", ["mend", "malmen"])
@pytest.mark.parametrize("tokens", [23, 24])
def test_change_is_low_rank_exactly_where_tokens_are_fewer_than_the_smaller_side(
    gpt2: Case, name: str, tokens: int
) -> None:
    config = config_of(gpt2, name)
    net = fresh(gpt2.model, config, jax.random.key(0))
    shapes = {path: gpt2.model.shapes[path] for path in net.net.rate}
    pairs = {
        path: Pairs(*(jnp.ones((tokens, d)) for d in shapes[path]), jnp.ones(tokens, bool)) for path in shapes
    }
    for path, delta in shift(net.net, net.running, pairs, config.affine).items():
        assert min(shapes[path]) == 24
        assert isinstance(delta, LowRank) == (tokens < 24)
        assert delta.left.shape[1] == tokens if tokens < 24 else delta.shape == shapes[path]


def test_lifelong_moments_go_on_with_every_edit_and_are_used(gpt2: Case) -> None:
    config = replace(config_of(gpt2, "malmen"), lifelong=True)
    net, params = some_net(gpt2, config), params_of(gpt2, config)
    editor = hypernetwork(gpt2.model, net, config)
    _, state, info = jax.jit(editor.update)(params, editor.init(params), requests_of(gpt2, [0, 3]))
    pairs = features_of(gpt2, config, [0, 3]).pairs
    expected = fold_pairs(net.running, pairs)
    for shape, running in state.running.items():
        assert int(running.total) == int(expected[shape].total) > int(net.running[shape].total)
        assert relative(running.mean, expected[shape].mean) <= 1e-5
    for path, delta in jax.jit(shift, static_argnums=3)(net.net, expected, pairs, config.affine).items():
        assert relative(dense(info.delta[path]), dense(delta)) <= 1e-4
    assert same_bits(state.net, net.net)


@pytest.mark.parametrize("name", ["mend", "malmen"])
def test_the_identity_can_learn(gpt2: Case, name: str) -> None:
    """Every pre-activation is zero there: with a derivative of zero no gradient would ever reach a block."""
    config = config_of(gpt2, name)
    start, pairs = untrained(gpt2.model, config, jax.random.key(0)), features_of(gpt2, config, [0, 3]).pairs
    running = fold_pairs(start.running, pairs)
    toward = {path: jax.random.normal(jax.random.key(2), gpt2.model.shapes[path]) for path in pairs}

    def along(net) -> jax.Array:
        deltas = shift(net, running, pairs, config.affine)
        return sum(jnp.vdot(dense(delta), toward[path]) for path, delta in deltas.items())

    gradient = jax.jit(jax.grad(along))(start.net)
    for blocks in gradient.blocks.values():
        for block in blocks:
            assert all(jnp.abs(getattr(block, name)).max() > 0 for name in ("out", "bias", "shift"))


@pytest.mark.parametrize("tokens", [5, 30], ids=["fewer tokens than components", "more"])
def test_smoother_is_the_ridge_solution_and_its_slope_in_lambda_is_that_of_finite_differences(
    tokens: int,
) -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(tokens, 12)).astype(np.float32)
    toward = rng.normal(size=(12, tokens)).astype(np.float32)

    def solution(log_ridge: float) -> np.ndarray:
        k = keys.astype(np.float64)
        return np.linalg.solve(k.T @ k + np.exp(log_ridge) * np.eye(12), k.T)

    assert relative(smoother(keys, jnp.float32(0.5)), solution(0.5)) <= 1e-6
    slope = jax.grad(lambda log_ridge: jnp.vdot(smoother(keys, log_ridge), toward))(jnp.float32(0.5))
    step = 1e-5
    expected = np.vdot((solution(0.5 + step) - solution(0.5 - step)) / (2 * step), toward)
    assert float(slope) == pytest.approx(expected, rel=1e-4)


def test_a_network_of_other_matrices_is_refused(gpt2: Case) -> None:
    config = config_of(gpt2, "malmen")
    net = fresh(gpt2.model, config, jax.random.key(0))
    for other in (replace(config, rank=4), replace(config, layers=(0, 1)), replace(config, aggregate="sum")):
        with pytest.raises(StatisticsError, match="does not fit"):
            hypernetwork(gpt2.model, net, other)
