"""Training of hypernetworks: its gradient, that it helps, that it stops and goes on, what is kept on disk."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxedit.configs import build
from jaxedit.editors.features import token_features
from jaxedit.editors.hypernet import HyperConfig, Hypernet, Net, fold_pairs, fresh, transform
from jaxedit.editors.malmen import malmen_config
from jaxedit.editors.mend import mend_config
from jaxedit.errors import ConfigError, FactError, RunError, StatisticsError
from jaxedit.evaluation.edits import read
from jaxedit.training.files import NetFile, load_net, save_net
from jaxedit.training.hypernet import Trained, train_hypernetwork
from jaxedit.training.lessons import Lessons, encode_lessons, judge, predictions, take
from jaxedit.training.steps import TrainConfig, change_loss, changes_of, edit_loss, judged_by, moved, order
from jaxedit.types import PARAPHRASE, REWRITE
from tests.cases import FACTS, Case, same_bits

LAYERS = (0, 1)
QUICK = TrainConfig(edits=1, accumulate=4, steps=20, every=10, learning_rate=1e-3, rate_learning_rate=1e-4)
TARGETS = ("Rome", "Italy", "English", "jazz")
NETS = (pytest.param("mend", marks=pytest.mark.slow), "malmen")
TRAINING = "training the network"
OTHERS = ("The weather of the town is", "The famous pianist lies in the city of")


def mend_of(case: Case) -> HyperConfig:
    return replace(mend_config(LAYERS, case.model.config.gated_mlp, rank=8), learning_rate=1e-4)


def malmen_of() -> HyperConfig:
    return replace(malmen_config(LAYERS, rank=8), learning_rate=1e-3)


def lessons_of(case: Case, held_out: bool = False, count: int | None = None) -> Lessons:
    """Every prompt with every target; each target is held out with another prompt."""
    facts = [
        replace(fact, target_new=target, paraphrases=(f"Because of it, {fact.prompt}",), neighborhood=OTHERS)
        for i, fact in enumerate(FACTS)
        for j, target in enumerate(TARGETS)
        if ((i + j) % len(TARGETS) == 0) == held_out
    ]
    return encode_lessons(facts[:count], case.checkpoint.tokenizer, max_length=64)


def train(
    case: Case,
    config: HyperConfig,
    training: TrainConfig,
    folder: Path | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Trained:
    lessons, held_out = lessons_of(case), lessons_of(case, held_out=True)
    key, flat = jax.random.key(0), case.checkpoint.params
    return train_hypernetwork(case.model, flat, lessons, held_out, config, training, key, folder, report)


@pytest.mark.parametrize("name", NETS)
def test_split_meta_gradient_is_that_of_one_differentiation_through_everything(gpt2: Case, name: str) -> None:
    config = mend_of(gpt2) if name == "mend" else malmen_of()
    paths = gpt2.model.parameter_paths(config.layers, config.targets)
    params = gpt2.model.split(gpt2.checkpoint.params, paths)
    lesson = jax.tree.map(jnp.asarray, lessons_of(gpt2, count=3))
    look = jax.jit(token_features, static_argnums=(0, 3, 4))
    features = look(gpt2.model, params, lesson.requests, paths, config.tokens)
    start = fresh(gpt2.model, config, jax.random.key(0))
    running = fold_pairs(start.running, features.pairs)

    def plain(net: Net) -> jax.Array:
        """The published formulas written out with JAX's own solver, no custom derivative anywhere."""
        changed, members = {}, dict.fromkeys(net.blocks, 0)
        for path in sorted(paths):
            one = features.pairs[path]
            blocks, member = net.blocks[one.shape], members[one.shape]
            key, gradient = transform(blocks, running[one.shape], one, member, config.affine)
            members[one.shape] += 1
            if name == "mend":
                delta = -net.rate[path] * jnp.matmul(key.T, gradient, precision="highest")
            else:
                wanted = -net.rate[path] * jnp.sum(one.key * key, axis=1, keepdims=True) * gradient
                system = one.key.T @ one.key + jnp.exp(net.log_ridge[path]) * jnp.eye(one.key.shape[1])
                delta = jnp.linalg.solve(system, one.key.T @ wanted)
            changed[path] = params.edited[path] + delta
        return edit_loss(
            gpt2.model, config, QUICK, params, params._replace(edited=params.edited | changed), lesson
        )

    @jax.jit
    def split(net: Net) -> Net:
        changes, pull_back = jax.vjp(lambda net: changes_of(config, net, running, features), net)
        batch = jax.tree.map(lambda x: x[None], lesson)
        slope = jax.grad(lambda c: change_loss(gpt2.model, config, QUICK, params, batch, jnp.int32(0), c))(
            changes
        )
        return pull_back(slope)[0]

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(jax.grad(plain))(start.net)
    found = split(start.net)
    for name_of, leaf in jax.tree.leaves_with_path(expected):
        other = dict(jax.tree.leaves_with_path(found))[name_of]
        assert float(jnp.abs(leaf).max()) > 0 or "into" in str(name_of) or "scale" in str(name_of)
        assert np.linalg.norm(other - leaf) <= 1e-3 * np.linalg.norm(leaf) + 1e-9, name_of


def test_judgement_is_the_mean_over_a_facts_prompts_and_locality_is_zero_for_the_same_model(
    gpt2: Case,
) -> None:
    lesson = lessons_of(gpt2, count=3)
    params = gpt2.params(LAYERS)
    said = jax.jit(predictions, static_argnums=0)
    before = said(gpt2.model, params, lesson.probes)
    same = judge(before, before, lesson)
    assert float(same.locality) == 0
    nll = np.asarray(read(gpt2.model, params, lesson.probes).nll)[..., 0]
    asked = np.isin(lesson.probes.kind, (REWRITE, PARAPHRASE))
    assert asked.sum() == 6
    assert float(same.edit) == pytest.approx(nll[asked].mean(), rel=1e-5)  # two prompts a fact
    path = gpt2.model.config.edited_path(0)
    other = moved(params, {path: 0.1 * jnp.ones(gpt2.model.shapes[path])})
    assert float(judge(before, said(gpt2.model, other, lesson.probes), lesson).locality) > 0


@pytest.mark.parametrize("name", NETS)
def test_training_lowers_the_held_out_loss(gpt2: Case, name: str) -> None:
    config = mend_of(gpt2) if name == "mend" else malmen_of()
    trained = train(gpt2, config, QUICK)
    assert trained.held_out.min() < 0.95 * trained.held_out[0]
    assert np.isfinite(trained.losses).all()
    assert len(trained.losses) == QUICK.steps
    assert not same_bits(trained.hypernet.net, fresh(gpt2.model, config, jax.random.key(0)).net)


def test_hidden_states_kept_of_the_layers_below_change_nothing_but_the_time(gpt2: Case) -> None:
    config = replace(malmen_of(), layers=(1,))
    kept = train(gpt2, config, replace(QUICK, steps=10))
    anew = train(gpt2, config, replace(QUICK, steps=10, keep_hidden=False))
    np.testing.assert_allclose(kept.losses, anew.losses, rtol=1e-4)
    np.testing.assert_allclose(kept.held_out, anew.held_out, rtol=1e-4)
    assert kept.held_out[-1] < kept.held_out[0]


def test_training_stops_early_with_the_best_net_and_when_interrupted_goes_on_to_the_same_bits(
    gpt2: Case, tmp_path: Path
) -> None:
    wild = replace(QUICK, steps=30, every=1, patience=3, learning_rate=3.0, rate_learning_rate=3.0)
    before = jax.tree.map(np.array, gpt2.checkpoint.params)
    whole = train(gpt2, malmen_of(), wild)
    assert len(whole.losses) == int(np.argmin(whole.held_out)) + wild.patience < wild.steps
    assert len(whole.held_out) == len(whole.losses) + 1
    assert same_bits(gpt2.checkpoint.params, before)

    class Stop(Exception):
        pass

    def interrupt(stage: str, step: int, _: int) -> None:
        if (stage, step) == (TRAINING, 2):
            raise Stop

    with pytest.raises(Stop):
        train(gpt2, malmen_of(), wild, tmp_path, interrupt)
    looks: list[int] = []
    resumed = train(
        gpt2,
        malmen_of(),
        wild,
        tmp_path,
        lambda stage, step, _: looks.append(step) if stage == TRAINING else None,
    )
    assert looks == list(range(3, len(whole.losses) + 1))
    assert same_bits(resumed, whole)
    with pytest.raises(RunError, match="another training: its training differ"):
        train(gpt2, malmen_of(), replace(wild, steps=31), tmp_path)
    flat = gpt2.checkpoint.params
    name = gpt2.model.config.edited_path(2)  # not even one that is edited
    other = replace(
        gpt2, checkpoint=replace(gpt2.checkpoint, params={**flat, name: flat[name].at[0, 0].add(1e-3)})
    )
    with pytest.raises(RunError, match="another training: its model differ"):
        train(other, malmen_of(), wild, tmp_path)


def test_a_sequence_of_edits_is_judged_by_those_before(gpt2: Case) -> None:
    """RLEdit: the loss of the second change is its own and, weighed by the decay, that of the first one's fact."""
    training = replace(QUICK, accumulate=2, sequence=True, decay=0.5, size_weight=0.25)  # looks back at all
    batch = jax.tree.map(lambda x: jnp.asarray(x[:2, None]), lessons_of(gpt2, count=3))
    params, path = gpt2.params(LAYERS), gpt2.model.config.edited_path(0)
    changes = {path: 0.05 * jax.random.normal(jax.random.key(0), gpt2.model.shapes[path])}
    after, size = moved(params, changes), float(jnp.square(changes[path]).sum())
    config = malmen_of()
    worth = jax.jit(edit_loss, static_argnums=(0, 1, 2))
    own, earlier = (
        float(worth(gpt2.model, config, training, params, after, take(batch, np.int32(i)))) for i in (1, 0)
    )
    loss = jax.jit(change_loss, static_argnums=(0, 1, 2))
    found = loss(gpt2.model, config, training, params, batch, jnp.int32(1), changes)
    assert float(found) == pytest.approx(0.25 * size + own + 0.5 * earlier, rel=1e-5)
    first = loss(gpt2.model, config, training, params, batch, jnp.int32(0), changes)
    assert float(first) == pytest.approx(0.25 * size + earlier, rel=1e-5)


def test_a_sequence_is_judged_by_all_of_its_edits_unless_told_otherwise() -> None:
    """So that `decay` has something to weigh; without a sequence every edit stands alone."""
    assert TrainConfig(sequence=True).decay < 1
    for training, count in (
        (TrainConfig(accumulate=7, sequence=True), 7),
        (TrainConfig(accumulate=7, sequence=True, look_back=3), 3),
        (TrainConfig(accumulate=7, sequence=True, look_back=30), 7),
        (TrainConfig(accumulate=7), 1),
    ):
        assert judged_by(training) == count


@pytest.mark.slow
def test_training_on_sequences_lowers_the_held_out_loss(gpt2: Case) -> None:
    trained = train(gpt2, malmen_of(), replace(QUICK, sequence=True, look_back=3))
    assert trained.held_out.min() < 0.95 * trained.held_out[0]
    assert np.isfinite(trained.losses).all()


def test_order_takes_every_fact_once_a_pass_and_is_a_function_of_key_and_step() -> None:
    training = TrainConfig(edits=2, accumulate=3)
    key = jax.random.key(5)
    taken = np.concatenate([order(key, step, 4, training).ravel() for step in range(4)])
    for number in range(6):
        assert sorted(taken[number * 4 : number * 4 + 4]) == [0, 1, 2, 3]
    assert np.array_equal(order(key, 3, 4, training), order(key, 3, 4, training))
    assert order(key, 0, 4, training).shape == (3, 2)


def test_a_net_comes_back_from_its_file_and_only_for_its_model(gpt2: Case, tmp_path: Path) -> None:
    config, file = mend_of(gpt2), tmp_path / "nets" / "mend.safetensors"
    start = fresh(gpt2.model, config, jax.random.key(3))
    net = Hypernet(start.net, {shape: r._replace(total=jnp.int32(7)) for shape, r in start.running.items()})
    save_net(file, NetFile(net, config), "a" * 64, facts="tiny")
    found = load_net(file, gpt2.model, "a" * 64)
    assert found.config == config
    older = {name: value for name, value in dataclasses.asdict(malmen_of()).items() if name != "affine"}
    assert build(HyperConfig, older).affine == "inside", "its block is the one it was trained with"
    assert same_bits(found.hypernet, net)
    with pytest.raises(StatisticsError, match="belongs to another model"):
        load_net(file, gpt2.model, "b" * 64)
    tensors, broken = load_file(file), tmp_path / "broken.safetensors"
    save_file(tensors, broken)
    with pytest.raises(StatisticsError, match="cannot be read as a trained network"):
        load_net(broken, gpt2.model, "a" * 64)
    nan = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, net)
    save_net(broken, NetFile(nan, config), "a" * 64)
    with pytest.raises(StatisticsError, match="not finite"):
        load_net(broken, gpt2.model, "a" * 64)
    save_net(broken, NetFile(net, replace(config, rank=4)), "a" * 64)
    with pytest.raises(StatisticsError, match="wrong shape"):
        load_net(broken, gpt2.model, "a" * 64)


def test_settings_and_facts_that_cannot_work_are_refused(gpt2: Case) -> None:
    for change, message in (
        ({"edits": 16}, "there are 15 facts"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"decay": -1.0}, "decay is -1.0"),
        ({"look_back": 0, "sequence": True}, "look_back is 0"),
        ({"look_back": 2}, "look_back has no effect without sequence"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(gpt2, malmen_of(), replace(QUICK, **change))
    with pytest.raises(FactError, match="no fact has neighborhood prompts"):
        encode_lessons(FACTS, gpt2.checkpoint.tokenizer, max_length=64)
