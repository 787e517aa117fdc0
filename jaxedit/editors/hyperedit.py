"""Editing by a trained network: the loss's factors in, the change of the matrices out, in one step."""

import jax
import jax.numpy as jnp

from jaxedit.editors.features import token_features, written
from jaxedit.editors.hypernet import HyperConfig, Hypernet, fold_pairs, fresh, shift
from jaxedit.errors import StatisticsError
from jaxedit.models.model import Model
from jaxedit.types import Editor, Params, Requests


def hypernetwork(model: Model, trained: Hypernet, config: HyperConfig) -> Editor:
    """MEND or MALMEN with this network, which is its state.

    With `lifelong` the running moments go on with every edit, before it is computed. Raises ConfigError for a layer
    or matrix that the model does not have, StatisticsError for a network of other matrices or another rank.
    """
    check_net(model, trained, config)
    paths = model.parameter_paths(config.layers, config.targets)

    def init(params: Params) -> Hypernet:
        return jax.tree.map(jnp.copy, trained)

    def update(params: Params, state: Hypernet, requests: Requests):
        features = token_features(model, params, requests, paths, config.tokens)
        if config.lifelong:
            state = state._replace(running=fold_pairs(state.running, features.pairs))
        deltas = shift(state.net, state.running, features.pairs, config.affine)
        return written(params, state, deltas, {"loss": features.loss})

    return Editor(init, update, remembers=config.lifelong)


def check_net(model: Model, trained: Hypernet, config: HyperConfig) -> None:
    """Raises StatisticsError, naming the first difference, for a network that `config` does not describe."""
    expected = jax.eval_shape(lambda: fresh(model, config, jax.random.key(0)))
    wanted, found = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (expected, trained)
    )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise StatisticsError(
                f"the network does not fit the model and settings: {name} has shape {found.get(name)}, "
                f"expected {wanted.get(name)}. Train one for these layers, matrices and rank."
            )
