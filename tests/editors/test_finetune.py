"""FT and FT-L against the oracle's Adam in float64, and their bounds and stops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.data import pad_requests
from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.objective import real_tokens, target_nll
from jaxedit.models.decoder import Decoder
from jaxedit.types import EditInfo, Params, Requests
from tests.cases import FACTS, LAYER, Case, oracle_facts, relative
from tests.reference import editors as oracle
from tests.reference import layout

BATCHES = ([0, 3, 4], [1, 2])
PATH = f"layers.{LAYER}.mlp.down.kernel"
TOLERANCE = 1e-4  # of 25 Adam steps: entries whose gradient is near zero amplify float32's rounding


one_size = functools.partial(FineTuneConfig, shares=())  # compiles faster than two


def requests_of(case: Case, batch: list[int], size: int = 3) -> Requests:
    whole = case.encode(FACTS, ("",))
    return pad_requests(type(whole)(*(np.asarray(x)[batch] for x in whole)), size)


def sequence(case: Case, config: FineTuneConfig, **options: bool) -> list[tuple[Params, EditInfo]]:
    """Both batches one after the other; `options` are the compiler's."""
    editor = fine_tune(case.model, config)
    params, update, result = case.params([LAYER]), jax.jit(editor.update, compiler_options=options), []
    state = editor.init(params)
    for batch in BATCHES:
        params, state, info = update(params, state, requests_of(case, batch))
        result.append((params, info))
    return result


@pytest.mark.parametrize(
    ("bound", "centre"),
    [(None, "edit"), (2e-3, "edit"), (2e-3, "original")],
    ids=["ft", "ft-l", "ft-l original"],
)
def test_both_edits_of_a_sequence_are_the_oracles(case: Case, bound: float | None, centre: str) -> None:
    config = one_size((LAYER,), steps=25, stop_loss=0.0, bound=bound, centre=centre)
    found = sequence(case, config)
    with layout.restored(case.oracle, [LAYER]):
        original = layout.weight(case.oracle, LAYER)
        for batch, (_, info) in zip(BATCHES, found, strict=True):
            expected = oracle.finetune(
                case.oracle,
                case.checkpoint.tokenizer,
                [oracle_facts(FACTS)[i] for i in batch],
                LAYER,
                lr=config.learning_rate,
                steps=config.steps,
                bound=bound,
                centre=original if centre == "original" else None,
            )
            assert int(info.metrics["steps"]) == config.steps
            assert relative(info.delta[PATH], expected[LAYER].T) <= TOLERANCE


def test_losses_fall_and_the_first_is_the_unedited_models(gpt2: Case) -> None:
    config = one_size((LAYER,), learning_rate=5e-3, stop_loss=0.0)
    losses = np.asarray(sequence(gpt2, config)[0][1].metrics["loss"])
    whole = requests_of(gpt2, BATCHES[0])
    for i, number in enumerate(BATCHES[0]):
        target = torch.tensor(whole.target[i][whole.target_mask[i]], dtype=torch.long)
        ids = torch.tensor([gpt2.checkpoint.tokenizer(FACTS[number].prompt)["input_ids"] + target.tolist()])
        with torch.no_grad():
            log_p = gpt2.oracle(ids).logits[0, -len(target) - 1 : -1].log_softmax(-1)
        assert losses[0, i] == pytest.approx(-log_p[range(len(target)), target].mean().item(), rel=1e-5)
    assert (losses[-1] < losses[0]).all()


def test_bound_holds_around_its_centre_for_each_edit_or_for_the_whole_sequence(gpt2: Case) -> None:
    bound = 2e-3
    start = np.asarray(gpt2.params([LAYER]).edited[PATH])
    slack = bound * 1e-3
    for centre in ("edit", "original"):
        config = one_size((LAYER,), stop_loss=0.0, bound=bound, centre=centre)
        (first, _), (second, _) = sequence(gpt2, config)
        assert np.abs(first.edited[PATH] - start).max() == pytest.approx(bound, abs=slack)
        assert np.abs(second.edited[PATH] - first.edited[PATH]).max() >= bound - slack
        reach = np.abs(second.edited[PATH] - start).max()
        assert reach == pytest.approx(bound, abs=slack) if centre == "original" else reach > 1.5 * bound


def test_a_batch_whose_loss_is_low_is_left_as_it_is(gpt2: Case) -> None:
    (params, info), _ = sequence(gpt2, one_size((LAYER,), stop_loss=100.0))
    assert int(info.metrics["steps"]) == 1
    assert np.isnan(info.metrics["loss"][1:]).all()
    assert not info.delta[PATH].any()
    assert np.array_equal(params.edited[PATH], gpt2.params([LAYER]).edited[PATH])


def test_several_layers_learn_together_each_by_its_own_gradient(gpt2: Case) -> None:
    """One step of Adam moves every entry by the learning rate against its gradient's sign."""
    layers, rate = (0, 1), 1e-3
    config = one_size(layers, learning_rate=rate, steps=1, stop_loss=0.0)
    editor, params = fine_tune(gpt2.model, config), gpt2.params(layers)
    _, _, info = jax.jit(editor.update)(params, editor.init(params), requests_of(gpt2, BATCHES[0]))
    for layer in layers:
        alone = fine_tune(gpt2.model, one_size((layer,), learning_rate=rate, steps=1, stop_loss=0.0))
        start = gpt2.params([layer])
        _, _, one = jax.jit(alone.update)(start, alone.init(start), requests_of(gpt2, BATCHES[0]))
        path = f"layers.{layer}.mlp.down.kernel"
        assert relative(info.delta[path], one.delta[path]) <= 1e-3
        assert float(jnp.abs(info.delta[path]).max()) == pytest.approx(rate, rel=1e-2)


def test_remembered_centre_is_a_copy_that_a_driver_may_take_over(gpt2: Case) -> None:
    editor = fine_tune(gpt2.model, one_size((LAYER,), bound=1e-3, centre="original"))
    params = gpt2.params([LAYER])
    for leaf in editor.init(params).values():
        leaf.delete()
    assert not params.edited[PATH].is_deleted()
    assert not gpt2.checkpoint.params[PATH].is_deleted()


@pytest.mark.parametrize("first", [0, LAYER])
@pytest.mark.parametrize("scored", ["target_new", "prompt_last"])
def test_a_loss_read_without_padding_is_the_same(gpt2: Case, first: int, scored: str) -> None:
    """A fact of weight 0 has no room and no say."""
    requests = requests_of(gpt2, [0, 1], 3)
    real = int(real_tokens(requests).sum())
    assert real < real_tokens(requests).size
    paths = gpt2.model.parameter_paths(None if first == 0 else [first])
    params = gpt2.model.split(gpt2.checkpoint.params, paths)

    def bind(weights: dict[str, jax.Array]) -> Decoder:
        return gpt2.model.bind(Params(weights, params.frozen))

    @functools.partial(jax.jit, static_argnums=0)
    def slope(places: int | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        objective = target_nll(bind, params.edited, requests, first, scored, places=places)
        return jax.value_and_grad(lambda w: jnp.sum(objective.loss(w) * objective.share))(params.edited)

    (loss, gradient), (other, packed) = slope(None), slope(real)
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    flat = [np.concatenate([np.ravel(g[path]) for path in paths]) for g in (packed, gradient)]
    assert relative(*flat) <= 1e-5


def test_the_smallest_room_that_holds_a_batch_is_taken(gpt2: Case) -> None:
    """Rooms too small for it are passed over, and all of them give the same update."""
    usual = {"xla_cpu_use_fusion_emitters": True}  # through the quicker path of other tests, bits differ
    deltas = [
        sequence(gpt2, FineTuneConfig(layers=(LAYER,), steps=3, shares=shares), **usual)[0][1].delta[PATH]
        for shares in ((), (0.01,), (0.01, 1.0))
    ]
    assert np.array_equal(deltas[0], deltas[1])
    assert relative(deltas[2], deltas[0]) <= 1e-5
