"""One step of training a hypernetwork, with the meta-gradient split at the change of the matrices.

The gradient of the loss with respect to that change needs the language model alone, and pulling it back to what is
learned the network alone (MALMEN, arXiv 2311.04661).
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxedit.editors.features import Features, Start, token_features
from jaxedit.editors.hypernet import HyperConfig, Hypernet, Net, fold_pairs, shift
from jaxedit.linalg import dense
from jaxedit.models.model import Model
from jaxedit.training.lessons import Lessons, judge, predictions, take
from jaxedit.types import Params

Changes = dict[str, Float[Array, "in out"]]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training: MEND's, with learning rates that suit small models."""

    edits: int = 1
    """Facts written by one edit."""
    accumulate: int = 10
    """Edits a step of the optimiser."""
    sequence: bool = False
    """RLEdit: these edits one after the other on one model, not each on the unedited one."""
    look_back: int | None = None
    """How many edits of a sequence, back from its own, a change is judged by; by default all of them."""
    decay: float = 0.95
    """Weight of each of them in that of the one after."""
    size_weight: float = 0.0
    """Of the squared norm of the changes."""
    edit_weight: float = 0.1
    """Of the new targets' NLL after the edit."""
    locality_weight: float = 1.0
    """Of the KL divergence on the neighborhood."""
    learning_rate: float = 1e-4
    """Adam's, for the network."""
    rate_learning_rate: float = 1e-5
    """Adam's, for the matrices' own rates."""
    clip: float = 1.0
    """Bound on the gradient's norm."""
    steps: int = 1000
    """At most."""
    every: int = 50
    """Steps between looks at the held-out facts; each is a checkpoint."""
    patience: int = 5
    """Looks without improvement before stopping."""
    keep_hidden: bool = True
    """Run the layers below the first edited one once a fact, not once a step, and keep what they give in host memory:
    d_model numbers for every token of a fact's prompts (SmolLM2-135M: 0.3 MB a fact)."""


class Progress(NamedTuple):
    """All that training goes on from."""

    step: Int[Array, ""]
    hypernet: Hypernet
    optimiser: optax.OptState
    best: Hypernet  # with the lowest held-out loss
    best_loss: Float[Array, ""]
    stale: Int[Array, ""]  # looks since then
    losses: Float[Array, "steps"]  # NaN where not reached
    held_out: Float[Array, "looks"]


def begin(hypernet: Hypernet, training: TrainConfig) -> Progress:
    """Nothing trained and nothing looked at."""
    looks = 1 - (-training.steps // training.every)
    return Progress(
        step=jnp.zeros((), jnp.int32),
        hypernet=hypernet,
        optimiser=optimiser_of(training).init(hypernet.net),
        best=hypernet,
        best_loss=jnp.array(jnp.inf),
        stale=jnp.zeros((), jnp.int32),
        losses=jnp.full(training.steps, jnp.nan),
        held_out=jnp.full(looks, jnp.nan),
    )


def optimiser_of(training: TrainConfig) -> optax.GradientTransformation:
    """Adam with a learning rate of its own for the matrices' rates, on the clipped gradient."""
    adam = {"network": optax.adam(training.learning_rate), "rate": optax.adam(training.rate_learning_rate)}

    def labels(net: Net) -> Net:
        other = jax.tree.map(lambda _: "network", net)
        return other._replace(rate=dict.fromkeys(net.rate, "rate"))

    return optax.chain(optax.clip_by_global_norm(training.clip), optax.multi_transform(adam, labels))


def order(key: Array, step: int, facts: int, training: TrainConfig) -> Int[np.ndarray, "accumulate edits"]:
    """Which facts a step takes: the next ones of an endless row of permutations, the same for the same key."""
    size = training.accumulate * training.edits
    places = np.arange(step * size, (step + 1) * size)
    passes = {
        int(n): jax.random.permutation(jax.random.fold_in(key, int(n)), facts) for n in set(places // facts)
    }
    chosen = [int(passes[int(place // facts)][place % facts]) for place in places]
    return np.array(chosen).reshape(training.accumulate, training.edits)


def train_step(
    model: Model,
    config: HyperConfig,
    training: TrainConfig,
    params: Params,
    progress: Progress,
    batch: Lessons,
) -> Progress:
    """The next step, on lessons with leading axes [accumulate, edits]; the moments count a batch before its edit."""
    net = progress.hypernet.net

    def edit(carry, index: Int[Array, ""]):
        edited, running, gradient = carry
        now = Params(edited, params.frozen)
        features = features_of(model, config, now, take(batch, index))
        running = fold_pairs(running, features.pairs)
        changes, pull_back = jax.vjp(lambda net: changes_of(config, net, running, features), net)
        worth = functools.partial(change_loss, model, config, training, now, batch, index)
        loss, slope = jax.value_and_grad(worth)(changes)
        gradient = jax.tree.map(jnp.add, gradient, pull_back(slope)[0])
        return (moved(now, changes).edited if training.sequence else edited, running, gradient), loss

    first = (params.edited, progress.hypernet.running, jax.tree.map(jnp.zeros_like, net))
    (_, running, gradient), losses = jax.lax.scan(edit, first, jnp.arange(training.accumulate))
    gradient = jax.tree.map(lambda x: x / training.accumulate, gradient)
    change, optimiser = optimiser_of(training).update(gradient, progress.optimiser, net)
    return progress._replace(
        step=progress.step + 1,
        hypernet=Hypernet(optax.apply_updates(net, change), running),
        optimiser=optimiser,
        losses=progress.losses.at[progress.step].set(losses.mean()),
    )


def features_of(model: Model, config: HyperConfig, params: Params, lesson: Lessons) -> Features:
    """Keys and gradients of the lesson's facts, from its hidden states where they were kept."""
    paths = model.parameter_paths(config.layers, config.targets)
    start = None if lesson.hidden is None else Start(min(config.layers), lesson.hidden.requests)
    return token_features(model, params, lesson.requests, paths, config.tokens, start)


def changes_of(config: HyperConfig, net: Net, running: dict, features: Features) -> Changes:
    """The network's change of every matrix, dense."""
    shifts = shift(net, running, features.pairs, config.affine)
    return {path: dense(delta) for path, delta in shifts.items()}


def moved(params: Params, changes: Changes) -> Params:
    """The parameters after these changes."""
    changed = {path: params.edited[path] + change for path, change in changes.items()}
    return Params(params.edited | changed, params.frozen)


def change_loss(
    model: Model,
    config: HyperConfig,
    training: TrainConfig,
    before: Params,
    batch: Lessons,
    index: Int[Array, ""],
    changes: Changes,
) -> Float[Array, ""]:
    """What changing `before` is worth to lesson `index` of the batch, and in a sequence to those before it.

    RLEdit (arXiv 2502.05759) sums the losses of the edits so far, each weighed by `decay` to the power of its age.
    """
    after = moved(before, changes)
    size = jnp.stack([jnp.sum(jnp.square(change)) for change in changes.values()]).sum()
    loss = training.size_weight * size

    def worth(age: Int[Array, ""] | int) -> Float[Array, ""]:
        lesson = take(batch, jnp.maximum(index - age, 0))
        weight = jnp.where(index >= age, training.decay**age, 0.0)
        return weight * edit_loss(model, config, training, before, after, lesson)

    if (judged := judged_by(training)) == 1:
        return loss + worth(0)
    # One after the other and computed again for the gradient: memory is that of one.
    return loss + jax.lax.map(jax.checkpoint(worth), jnp.arange(judged)).sum()


def judged_by(training: TrainConfig) -> int:
    """How many edits a change is judged by."""
    if not training.sequence:
        return 1
    return min(training.look_back or training.accumulate, training.accumulate)


def edit_loss(
    model: Model, config: HyperConfig, training: TrainConfig, before: Params, after: Params, lesson: Lessons
) -> Float[Array, ""]:
    """`edit_weight * NLL + locality_weight * KL` of the edited model, as in MEND."""
    start = None
    if lesson.hidden is not None:
        start = Start(min(config.layers), lesson.hidden.probes.reshape(-1, *lesson.hidden.probes.shape[-2:]))
    said = functools.partial(predictions, model, probes=lesson.probes, start=start)
    judged = judge(said(before), said(after), lesson)
    return training.edit_weight * judged.edit + training.locality_weight * judged.locality


def held_out_loss(
    model: Model,
    config: HyperConfig,
    training: TrainConfig,
    params: Params,
    hypernet: Hypernet,
    groups: Lessons,
) -> Float[Array, ""]:
    """Mean loss over facts, each group [groups, edits] edited on the unedited model, moments as they are."""

    def one(lesson: Lessons) -> Float[Array, ""]:
        features = features_of(model, config, params, lesson)
        after = moved(params, changes_of(config, hypernet.net, hypernet.running, features))
        return edit_loss(model, config, training, params, after, lesson)

    share = groups.requests.weight.sum(axis=-1)
    return jnp.sum(jax.lax.map(one, groups) * share) / share.sum()


def looked(progress: Progress, loss: Float[Array, ""]) -> Progress:
    """With the held-out loss of the network as it stands, kept if it is the best so far; NaN counts as infinite."""
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    better = loss < progress.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), progress.hypernet, progress.best)
    number = (~jnp.isnan(progress.held_out)).sum()
    return progress._replace(
        best=best,
        best_loss=jnp.where(better, loss, progress.best_loss),
        stale=jnp.where(better, 0, progress.stale + 1),
        held_out=progress.held_out.at[number].set(loss),
    )
