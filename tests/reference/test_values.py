"""The loss is the documented one, its gradient is right, and the steps come in the documented order."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from . import layout
from .facts import prompt_row, target_ids
from .tiny import TINY_CONTEXTS, TINY_FACTS, tiny_gpt2, tiny_llama, tiny_tokenizer
from .values import Objective, Site, optimise_value

MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
BOS = {"gpt2": False, "llama": True}


@pytest.fixture(params=MODELS, scope="module")
def model(request) -> PreTrainedModel:
    return MODELS[request.param](torch.float64, seed=1)


def objective_of(model: PreTrainedModel, site: Site, number: int = 3, kl: float = 0.0625) -> Objective:
    tokenizer = tiny_tokenizer(BOS[model.config.model_type])
    return Objective(model, tokenizer, TINY_FACTS[number], TINY_CONTEXTS, 1, site, weight_decay=0.5, kl=kl)


def central_differences(objective: Objective, delta: Tensor, step: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(delta)
    with torch.no_grad():
        for index in range(len(delta)):
            shift = torch.zeros_like(delta)
            shift[index] = step
            gradient[index] = (objective(delta + shift).loss - objective(delta - shift).loss) / (2 * step)
    return gradient


@pytest.mark.parametrize("site", ["mlp", "block"])
def test_first_gradient_matches_finite_differences(model: PreTrainedModel, site: Site) -> None:
    tokenizer = tiny_tokenizer(BOS[model.config.model_type])
    value = optimise_value(model, tokenizer, TINY_FACTS[3], TINY_CONTEXTS, 1, site, steps=2)
    expected = central_differences(objective_of(model, site), torch.zeros_like(value.delta))
    assert expected.norm() > 1e-2
    torch.testing.assert_close(value.first_gradient, expected, rtol=1e-6, atol=1e-8)


def test_gradient_away_from_zero_matches_finite_differences(model: PreTrainedModel) -> None:
    objective = objective_of(model, "mlp", kl=1.0)
    delta = torch.linspace(-1, 1, len(objective.h0), dtype=torch.float64).requires_grad_()
    terms = objective(delta)
    assert min(terms.kl, terms.decay) > 1e-3  # all terms count here
    (gradient,) = torch.autograd.grad(terms.loss, delta)
    torch.testing.assert_close(gradient, central_differences(objective, delta.detach()), rtol=1e-6, atol=1e-8)


def test_unedited_loss_is_the_cross_entropy_of_the_rows(model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(BOS[model.config.model_type])
    fact, objective = TINY_FACTS[3], objective_of(model, "block")
    target = target_ids(tokenizer, fact.target)
    assert len(target) > 1
    rows = []
    for context in TINY_CONTEXTS:
        ids = torch.tensor(prompt_row(tokenizer, fact, context).ids + target)
        logits = model(ids[None]).logits[0]
        rows.append(cross_entropy(logits[-len(target) - 1 : -1], ids[-len(target) :]))
    terms = objective(torch.zeros_like(objective.h0))
    torch.testing.assert_close(terms.loss, torch.stack(rows).mean(), rtol=1e-10, atol=0)
    assert terms.kl.abs() < 1e-14
    assert terms.decay == 0


def test_both_sites_are_one_intervention_where_the_residual_stream_adds(model: PreTrainedModel) -> None:
    at_mlp, at_block = objective_of(model, "mlp"), objective_of(model, "block")
    delta = torch.linspace(-1, 1, len(at_mlp.h0), dtype=torch.float64)
    torch.testing.assert_close(at_mlp(delta).nll, at_block(delta).nll)
    torch.testing.assert_close(at_mlp(delta).kl, at_block(delta).kl)
    assert not torch.allclose(at_mlp.h0, at_block.h0)


def test_kl_is_of_the_edited_from_the_original_at_the_subject(model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(BOS[model.config.model_type])
    fact, objective = TINY_FACTS[3], objective_of(model, "block", kl=1.0)
    delta = torch.linspace(-1, 1, len(objective.h0), dtype=torch.float64)
    ids = torch.tensor(tokenizer(fact.subject)["input_ids"])  # causal: "is a" comes after the position read

    def shift_last(_module, _inputs, output: Tensor) -> Tensor:
        return output + delta * (torch.arange(output.shape[1]) == output.shape[1] - 1)[:, None]

    original = model(ids[None]).logits[0, -1].softmax(-1)
    handle = layout.block(model, 1).register_forward_hook(shift_last)
    edited = model(ids[None]).logits[0, -1].softmax(-1)
    handle.remove()
    torch.testing.assert_close(objective(delta).kl, (edited * (edited / original).log()).sum())


def test_n_steps_make_n_minus_one_updates(model: PreTrainedModel) -> None:
    value = optimise_value(model, tiny_tokenizer(), TINY_FACTS[0], TINY_CONTEXTS, 1, steps=6, stop_loss=0.0)
    assert (value.updates, len(value.losses)) == (5, 6)
    torch.testing.assert_close(value.z, value.h0 + value.delta)


def test_each_update_is_projected_on_the_ball(model: PreTrainedModel) -> None:
    arguments = (model, tiny_tokenizer(), TINY_FACTS[0], TINY_CONTEXTS, 1)
    free = optimise_value(*arguments, steps=2, clamp=1e3)
    bound = free.delta.norm() / 2
    projected = optimise_value(*arguments, steps=2, clamp=float(bound / free.h0.norm()))
    torch.testing.assert_close(projected.delta, free.delta / 2)
    longer = optimise_value(*arguments, steps=6, clamp=float(bound / free.h0.norm()))
    assert longer.delta.norm() <= bound * (1 + 1e-12)


def test_first_update_is_adams(model: PreTrainedModel) -> None:
    value = optimise_value(
        model, tiny_tokenizer(), TINY_FACTS[0], TINY_CONTEXTS, 1, lr=0.1, steps=2, clamp=1e3
    )
    gradient = value.first_gradient
    torch.testing.assert_close(value.delta, -0.1 * gradient / (gradient.abs() + 1e-8))


def test_stops_before_the_update_once_the_loss_is_low(model: PreTrainedModel) -> None:
    arguments = (model, tiny_tokenizer(), TINY_FACTS[0], TINY_CONTEXTS, 1)
    free = optimise_value(*arguments, lr=0.1, steps=8, weight_decay=0.01, stop_loss=0.0)
    assert free.losses[5] < min(free.losses[:5])
    stop_loss = free.losses[5] * (1 + 1e-12)
    stopped = optimise_value(*arguments, lr=0.1, steps=8, weight_decay=0.01, stop_loss=stop_loss)
    assert stopped.losses == pytest.approx(free.losses[:6], rel=1e-12)
    assert stopped.updates == 5
    at_once = optimise_value(*arguments, stop_loss=1e3)
    assert at_once.updates == 0
    assert at_once.first_gradient is None
    assert not at_once.delta.any()


def test_the_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimise_value(model, tiny_tokenizer(), TINY_FACTS[0], TINY_CONTEXTS, 1, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
