"""AdamW, clipping, schedules and the objective of gradient editors, against the oracle and closed formulas."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.editors.finetune import FineTuneConfig, fine_tune
from jaxedit.editors.optimiser import Descent, Objective, descend, optimiser, rate
from jaxedit.errors import ConfigError
from jaxedit.types import EditInfo
from tests.cases import FACTS, LAYER, Case, equations, oracle_facts, relative
from tests.reference import gradients as oracle
from tests.reference import layout

BATCHES = ([0, 3, 4], [1, 2])
PATH = f"layers.{LAYER}.mlp.down.kernel"
TOLERANCE = 1e-4
SCHEDULED = {"schedule": "cosine_decay", "warmup_steps": 4, "schedule_steps": 30}


def edits(case: Case, config: FineTuneConfig) -> list[EditInfo]:
    """FT of both batches one after the other."""
    editor, params, found = fine_tune(case.model, config), case.params([LAYER]), []
    update = jax.jit(editor.update)
    for batch in BATCHES:
        params, _, info = update(params, {}, case.batch(batch, 3))
        found.append(info)
    return found


def expected(
    case: Case, lr: Callable[[int], float], steps: int, prompt_last: bool = False, **options: float
) -> list[tuple[np.ndarray, list[float]]]:
    """The same by the oracle: Delta [in, out] and the mean loss before every step."""
    result = []
    with layout.restored(case.oracle, [LAYER]), layout.frozen(case.oracle):
        W = layout.stored(case.oracle, LAYER).requires_grad_(True)
        for batch in BATCHES:
            before = layout.weight(case.oracle, LAYER)
            facts = [oracle_facts(FACTS)[i] for i in batch]
            loss = oracle.fact_loss(case.oracle, case.checkpoint.tokenizer, facts, prompt_last)
            losses = oracle.AdamW([W], lr, **options).minimise(loss, steps)
            result.append(((layout.weight(case.oracle, LAYER) - before).T.numpy(), losses))
    return result


def mean_losses(info: EditInfo, batch: list[int]) -> Array:
    return info.metrics["loss"][:, : len(batch)].mean(axis=1)


def test_adamw_with_clipping_and_a_schedule_is_the_oracles(case: Case) -> None:
    """Clipped at about half of the first gradient's norm, so that later steps are clipped and not."""
    options = {"weight_decay": 0.3, "clip_norm": 1.0}
    config = FineTuneConfig((LAYER,), learning_rate=2e-3, steps=25, stop_loss=0.0, **SCHEDULED, **options)
    reference = expected(case, oracle.warmed_cosine(2e-3, 4, 30), 25, weight_decay=0.3, clip=1.0)
    for info, (delta, losses), batch in zip(edits(case, config), reference, BATCHES, strict=True):
        assert relative(info.delta[PATH], delta) <= TOLERANCE
        np.testing.assert_allclose(mean_losses(info, batch), losses, rtol=1e-4)
    plain = expected(case, oracle.warmed_cosine(2e-3, 4, 30), 25, weight_decay=0.3)
    assert relative(reference[0][0], plain[0][0]) > 10 * TOLERANCE


def test_prompt_last_is_its_own_oracles_and_not_the_default(gpt2: Case) -> None:
    config = FineTuneConfig((LAYER,), steps=10, stop_loss=0.0, objective="prompt_last")
    reference = expected(gpt2, lambda _: config.learning_rate, 10, prompt_last=True)
    default = expected(gpt2, lambda _: config.learning_rate, 10)
    assert FineTuneConfig((LAYER,)).objective == "target_new"
    for info, (delta, _), (other, _) in zip(edits(gpt2, config), reference, default, strict=True):
        assert relative(info.delta[PATH], delta) <= TOLERANCE
        assert relative(other, delta) > 0.1


@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_have_their_values(warmup: int) -> None:
    left = 12 - warmup
    after = {
        "constant": lambda step: 0.5,
        "linear": lambda step: 0.5 * (1 - min(step / left, 1)),
        "cosine_decay": lambda step: 0.25 * (1 + np.cos(np.pi * min(step / left, 1))),
    }
    for schedule, value in after.items():
        config = FineTuneConfig((0,), learning_rate=0.5, steps=12, schedule=schedule, warmup_steps=warmup)
        for step in range(15):
            wanted = 0.5 * step / warmup if step < warmup else value(step - warmup)
            assert float(rate(config)(step)) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "linear", "warmup_steps": 25},
            "warmup_steps is 25; it must be below the schedule's 25",
        ),
        ({"warmup_steps": 5, "schedule_steps": 3}, "warmup_steps is 5; it must be below the schedule's 3"),
    ],
)
def test_a_schedule_filled_by_its_warm_up_is_refused(gpt2: Case, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fine_tune(gpt2.model, FineTuneConfig((LAYER,), **options))


def test_descents_at_once_are_each_alone_and_their_gradient_is_one_branch() -> None:
    """They stop after different numbers of steps."""
    config = FineTuneConfig((LAYER,), learning_rate=0.1, steps=20, stop_loss=0.5)
    transform = optimiser(config)

    def run(start: Array) -> Descent:
        weights = {"w": start}
        objective = Objective(lambda given: jnp.square(given["w"]).sum()[None], jnp.ones(1))
        return descend(objective, weights, transform.init(weights), transform, config)

    starts = jnp.array([[0.8, 0.3], [1.2, -1.0], [0.1, 0.1]])
    together, alone = jax.vmap(run)(starts), [run(start) for start in starts]
    assert len({int(one.step) for one in alone}) == len(starts)
    for i, one in enumerate(alone):
        found = jax.tree.map(lambda x: x[i], (together.weights, together.losses, together.step))  # noqa: B023
        jax.tree.map(np.testing.assert_allclose, found, (one.weights, one.losses, one.step))
    names = [equation.primitive.name for equation in equations(jax.make_jaxpr(jax.vmap(run))(starts).jaxpr)]
    assert "cond" in names
