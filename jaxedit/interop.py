"""Editors for Flax NNX models that are not ours (`jaxedit.models.foreign`), by the name of one matrix.

They are editors like all others (`jaxedit.types.Editor`): for `jax.jit`, for `jaxedit.trajectory.run`, for
`jaxedit.editors.transforms.chain`.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.editors.config import LocateConfig
from jaxedit.editors.locate import value_metrics
from jaxedit.editors.objective import FactConfig
from jaxedit.editors.optimiser import Objective, descend, optimiser
from jaxedit.editors.reading import mean_keys, residual_mean, value_now
from jaxedit.editors.solver import Batch, ridge
from jaxedit.errors import ConfigError, StatisticsError
from jaxedit.linalg import added, all_finite, safe_norm
from jaxedit.models.foreign import Foreign, adopt, from_nnx, run, to_nnx
from jaxedit.types import EditInfo, Editor, Params, Requests, Rewrite, Site, Solved
from jaxedit.values import minimise, most_probable

__all__ = ["Foreign", "adopt", "fine_tune", "from_nnx", "locate_and_edit", "second_moment", "to_nnx"]


def second_moment(
    foreign: Foreign, params: Params, blocks: Int[np.ndarray, "N T"], batch: int = 8
) -> Float[Array, "d_k d_k"]:
    """C0 = E[k k^T] of the matrix's keys over all tokens of `blocks`. Raises StatisticsError as `statistics`."""

    @jax.jit
    def products(params: Params, rows: Int[Array, "n T"]) -> Float[Array, "d_k d_k"]:
        keys = run(foreign, params, rows).keys.astype(jnp.float32)
        return jnp.einsum("ntk,ntl->kl", keys, keys, precision="highest")

    if not blocks.size:
        raise StatisticsError("no tokens were given, so there is no second moment: give a longer text")
    parts = (blocks[start : start + batch] for start in range(0, len(blocks), batch))
    moment = sum(products(params, jnp.asarray(rows)) for rows in parts) / blocks.size
    if not bool(jnp.isfinite(moment).all()):
        raise StatisticsError(
            f"the second moment of {foreign.matrix} is not finite: check the module's weights"
        )
    return moment


def locate_and_edit(foreign: Foreign, moment: Float[Array, "d_k d_k"], config: LocateConfig) -> Editor:
    """`jaxedit.editors.locate` at the named matrix: ROME, MEMIT of one layer, and what follows from them.

    `config.layers` is not read. Values are what the matrix gives (site "mlp"), whatever `config.values.site`
    says, so that `clamp` bounds delta by the norm of that output; facts run as whole rows.
    Raises ConfigError for PMET's pair of values and NAS's norm, StatisticsError for a misshapen moment.
    """
    if config.values.site == "attention+mlp" or config.anchor is not None:
        raise ConfigError(
            "values of two sites, and of a given norm, are known for jaxedit's own decoder alone"
        )
    config = replace(config, values=replace(config.values, site="mlp"))
    path, solver = foreign.matrix, ridge(config)

    def init(params: Params) -> dict[str, Any]:
        matrix = params.edited[path]
        if moment.shape != (len(matrix), len(matrix)):
            raise StatisticsError(
                f"the second moment is {moment.shape}, the keys of {path} are {len(matrix)} wide"
            )
        return {path: solver.init(moment, matrix)}

    def layerwise(
        params: Params, state: dict[str, Any], requests: Requests, rewrite: Rewrite, carry: Any
    ) -> tuple[Params, dict[str, Any], EditInfo, Any]:
        facts, n_rows, _ = requests.prefix.shape
        rows, matrix = rows_of(requests), params.edited[path]
        before = run(foreign, params, rows.tokens)
        key, output = _at(before.keys, rows.lookup), _at(before.output, rows.lookup).astype(jnp.float32)
        origin, original = output[::n_rows, 0], essence(before.logits, rows, n_rows)
        scale = jnp.maximum(jnp.square(safe_norm(origin)), jnp.finfo(jnp.float32).tiny)

        def objective(delta: Float[Array, "B d_v"]) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
            """As `jaxedit.values.value_objective`."""
            logits = run(foreign, params, rows.tokens, rows.lookup, jnp.repeat(delta, n_rows, axis=0)).logits
            nll, right = target_nll(logits.reshape(facts, n_rows, *logits.shape[1:])[:, :-1], rows, requests)
            now = essence(logits, rows, n_rows)
            divergence = jnp.sum(jnp.exp(now) * (now - original), axis=-1)
            decay = config.values.weight_decay * safe_norm(delta) / scale
            loss = nll.mean(axis=1) + config.values.kl * divergence + decay
            if config.values.patience is None:
                return loss, jnp.zeros((facts,), bool)
            return loss, most_probable(right, requests, config.values.reference_quirks)

        values = minimise(objective, origin, requests.weight > 0, config.values)
        keys, real = mean_keys(key, requests, config.key_mean), requests.weight[:, None]
        residual = values.target - value_now(output, requests, residual_mean(config))
        query = keys.bare if config.query == "bare" else keys.mean
        batch = Batch(keys.mean * real, query * real, residual * real, requests.weight)
        solved = Solved(batch.query, batch.residual, solver.write(state[path], matrix, batch))
        delta, carry = rewrite(Site(path, matrix, solved), solved.delta, carry)
        written = {path: added(matrix, delta)}
        if config.memory:
            state = {path: solver.remember(state[path], written[path], batch.keys, batch.weight)}
        norms = {f"key_norm/{path}": safe_norm(keys.mean), f"residual_norm/{path}": safe_norm(residual)}
        info = EditInfo({path: delta}, dict(value_metrics(values)) | norms, all_finite(written.values()))
        return Params(written, params.frozen), state, info, carry

    def update(params: Params, state: dict[str, Any], requests: Requests) -> tuple[Params, Any, EditInfo]:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    return Editor(init, update, remembers=config.memory, layerwise=layerwise)


def fine_tune(foreign: Foreign, config: FactConfig) -> Editor:
    """FT of the named matrix: AdamW on the targets' mean NLL after the bare prompts, anew for every update."""
    transform = optimiser(config)

    def update(params: Params, state: Any, requests: Requests) -> tuple[Params, Any, EditInfo]:
        rows = rows_of(requests)
        bare = rows.tokens[:: requests.prefix.shape[1]]
        if config.objective == "prompt_last":
            rows = rows._replace(predict_at=jnp.broadcast_to(rows.predict_at[..., :1], rows.predict_at.shape))

        def loss(weights: dict[str, Array]) -> Float[Array, "B"]:
            logits = run(foreign, Params(weights, params.frozen), bare).logits[:, None]
            return target_nll(logits, rows._replace(predict_at=rows.predict_at[:, :1]), requests)[0][:, 0]

        objective = Objective(loss, requests.weight / jnp.maximum(requests.weight.sum(), 1.0))
        end = descend(objective, params.edited, transform.init(params.edited), transform, config)
        deltas = jax.tree.map(jnp.subtract, end.weights, params.edited)
        return (
            Params(end.weights, params.frozen),
            state,
            EditInfo(deltas, end.metrics, all_finite(end.weights.values())),
        )

    return Editor(lambda params: {}, update, remembers=False)


class Rows(NamedTuple):
    """The N = B * R rows of a batch as left-aligned whole texts."""

    tokens: Int[Array, "N T"]
    lookup: Int[Array, "N"]  # where the lookup token stands
    predict_at: Int[Array, "B C t"]  # and those that predict the target's


def rows_of(requests: Requests) -> Rows:
    """Prefix and tail of every row joined, its padding moved to the right."""
    prefix, prefix_valid, tail, tail_valid = (x.reshape(-1, x.shape[-1]) for x in requests[:4])
    tokens, valid = (
        jnp.concatenate([prefix, tail], axis=1),
        jnp.concatenate([prefix_valid, tail_valid], axis=1),
    )
    order = jnp.argsort(~valid, axis=1, stable=True)
    lookup = prefix_valid.sum(axis=1)
    by_fact = lookup.reshape(requests.prefix.shape[:2])[:, :-1, None]
    return Rows(jnp.take_along_axis(tokens, order, axis=1), lookup, requests.predict_at + by_fact)


def target_nll(
    logits: Float[Array, "B C T vocab"], rows: Rows, requests: Requests
) -> tuple[Float[Array, "B C"], Bool[Array, "B C t"]]:
    """Mean NLL of every fact's target in its contexts, and where its tokens are the arg-max."""
    read = jnp.take_along_axis(logits, rows.predict_at[..., None], axis=2)
    log_p, real = jax.nn.log_softmax(read.astype(jnp.float32)), requests.target_mask[:, None]
    label = jnp.broadcast_to(requests.target[:, None], log_p.shape[:-1])
    nll = -jnp.take_along_axis(log_p, label[..., None], axis=-1)[..., 0]
    mean = jnp.sum(nll * real, axis=-1) / jnp.maximum(real.sum(axis=-1), 1)
    return mean, log_p.argmax(axis=-1) == label


def essence(logits: Float[Array, "N T vocab"], rows: Rows, n_rows: int) -> Float[Array, "B vocab"]:
    """log p at the lookup token of every fact's last row, "{subject} is a"."""
    return jax.nn.log_softmax(_at(logits, rows.lookup)[n_rows - 1 :: n_rows, 0].astype(jnp.float32))


def _at(x: Float[Array, "N T d"], at: Int[Array, "N"]) -> Float[Array, "N 1 d"]:
    return jnp.take_along_axis(x, at[:, None, None], axis=1)
