"""Whole edits do to the model what their definitions say."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import closed_forms, editors, layout
from .facts import Fact, prompt_row, target_ids
from .keys import lookup_features, mean_over_contexts
from .statistics import second_moments
from .tiny import TINY_CONTEXTS, TINY_FACTS, tiny_gpt2, tiny_llama, tiny_tokenizer, token_blocks
from .values import Settings, optimise_value

LAYERS = (0, 1, 2)
SETTINGS = Settings(lr=0.1, steps=5, weight_decay=0.01)  # tiny values make decay strong


class Case:
    """A model with its tokenizer and second moments (a ridge makes the few tiny tokens enough)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        moments = second_moments(model, token_blocks(tokenizer), LAYERS)
        self.C0 = {layer: C0 + 1e-3 * torch.eye(len(C0), dtype=C0.dtype) for layer, C0 in moments.items()}

    def features(self, fact: Fact, layer: int):
        return lookup_features(self.model, self.tokenizer, fact, TINY_CONTEXTS, layer)

    def value(self, fact: Fact, layer: int, site: str):
        return optimise_value(self.model, self.tokenizer, fact, TINY_CONTEXTS, layer, site, **vars(SETTINGS))

    def target_nll(self, fact: Fact) -> float:
        target = target_ids(self.tokenizer, fact.target)
        ids = torch.tensor([prompt_row(self.tokenizer, fact).ids + target])
        with torch.no_grad():
            log_p = self.model(ids).logits[0].log_softmax(-1)
        return -log_p[range(-len(target) - 1, -1), target].mean().item()


@pytest.fixture(params=["gpt2", "llama", "llama with bias"], scope="module")
def case(request) -> Case:
    if request.param == "gpt2":
        return Case(tiny_gpt2(torch.float64, seed=2), tiny_tokenizer())
    return Case(tiny_llama(torch.float64, seed=2, mlp_bias="bias" in request.param), tiny_tokenizer(bos=True))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_features_are_those_of_unpadded_rows_and_obey_the_weight(case: Case) -> None:
    for layer in LAYERS:
        together = case.features(TINY_FACTS[4], layer)
        W, b = layout.weight(case.model, layer), layout.bias(case.model, layer)
        assert_close(together.key @ W.T + b, together.mlp)
        for number, context in enumerate(TINY_CONTEXTS):
            alone = lookup_features(case.model, case.tokenizer, TINY_FACTS[4], [context], layer)
            for batched, single in zip(together, alone, strict=True):
                assert_close(batched[number], single[0])


def test_means_over_contexts() -> None:
    rows = torch.tensor([[6.0], [1.0], [2.0]], dtype=torch.float64)
    assert mean_over_contexts(rows, ["", "a", "b"], "plain") == 3
    assert mean_over_contexts(rows, ["", "a", "b"], "half") == 3.75
    assert mean_over_contexts(rows, ["a", "", "b"], "half") == 2.5
    assert mean_over_contexts(rows[:1], [""], "half") == 6


def test_rome_sends_the_bare_key_to_the_value(case: Case) -> None:
    for fact in TINY_FACTS[3:]:
        value = case.value(fact, 1, "mlp")
        with layout.restored(case.model, [1]):
            delta = editors.rome(case.model, case.tokenizer, fact, TINY_CONTEXTS, 1, case.C0[1], SETTINGS)
            assert torch.linalg.matrix_rank(delta[1]) == 1
            assert_close(case.features(fact, 1).mlp[0], value.z)


def test_r_rome_sends_the_mean_key_to_the_value(case: Case) -> None:
    for fact in TINY_FACTS[3:]:
        value = case.value(fact, 1, "mlp")
        with layout.restored(case.model, [1]):
            editors.r_rome(case.model, case.tokenizer, fact, TINY_CONTEXTS, 1, case.C0[1], SETTINGS)
            after = case.features(fact, 1)
            W, b = layout.weight(case.model, 1), layout.bias(case.model, 1)
            assert_close(W @ after.key.mean(dim=0) + b, value.z)
            assert_close(after.mlp.mean(dim=0), value.z)


def test_emmet_without_eps_moves_every_mean_key_by_its_residual(case: Case) -> None:
    facts = TINY_FACTS[2:]
    values = [case.value(fact, 1, "block") for fact in facts]
    with layout.restored(case.model, [1]):
        K, R = editors.gather(case.model, case.tokenizer, facts, TINY_CONTEXTS, 1, 1, values)
        assert_close(R, torch.stack([value.delta for value in values], dim=1))
        arguments = (case.model, case.tokenizer, facts, TINY_CONTEXTS, 1, case.C0[1], SETTINGS)
        delta = editors.emmet(*arguments, lam=10.0, eps=0.0, values=values)
        assert_close(delta[1] @ K, R, 1e-8)


def test_emmet_of_one_fact_is_exact_whatever_eps(case: Case) -> None:
    fact, value = TINY_FACTS[0], case.value(TINY_FACTS[0], 1, "block")
    arguments = (case.model, case.tokenizer, [fact], TINY_CONTEXTS, 1, case.C0[1], SETTINGS)
    with layout.restored(case.model, [1]):
        one = editors.emmet(*arguments, lam=10.0, eps=0.1, values=[value])
    with layout.restored(case.model, [1]):
        other = editors.emmet(*arguments, lam=10.0, eps=0.0, values=[value])
    assert torch.equal(one[1], other[1])


def test_memit_writes_layer_by_layer_on_the_weights_just_written(case: Case) -> None:
    facts, lam = TINY_FACTS[:3], 0.05
    values = [case.value(fact, LAYERS[-1], "block") for fact in facts]
    arguments = (case.model, case.tokenizer, facts, TINY_CONTEXTS, LAYERS, case.C0, SETTINGS)
    before = [layout.weight(case.model, layer) for layer in LAYERS]
    memory: editors.Memory = {}
    with layout.restored(case.model, LAYERS):
        deltas = editors.memit(*arguments, lam=lam, memory=memory)
        after = [layout.weight(case.model, layer) for layer in LAYERS]
    for layer in LAYERS:
        assert_close(after[layer] - before[layer], deltas[layer])
        assert deltas[layer].norm() > 1e-3
        assert memory[layer].shape == (before[layer].shape[1], len(facts))

    with layout.restored(case.model, LAYERS):  # each layer again, from the state its predecessors left
        for number, layer in enumerate(LAYERS):
            rows = [
                lookup_features(case.model, case.tokenizer, fact, [""], LAYERS[-1]).block[0] for fact in facts
            ]
            wanted = torch.stack([value.z for value in values], dim=1)
            R = (wanted - torch.stack(rows, dim=1)) / (len(LAYERS) - number)
            A = closed_forms.preservation(case.C0[layer], lam)
            delta, K = deltas[layer], memory[layer]
            assert_close(delta @ A, (R - delta @ K) @ K.T, 1e-8)
            layout.add_to_weight(case.model, layer, delta)


def test_memory_grows_and_holds_the_second_batch_back(case: Case) -> None:
    first, second = TINY_FACTS[:2], TINY_FACTS[2:4]
    arguments = {"contexts": TINY_CONTEXTS, "layers": [1], "C0": case.C0, "settings": SETTINGS, "lam": 0.05}
    moved = {}
    for name, memory in {"kept": {}, "none": None}.items():
        with layout.restored(case.model, [1]):
            editors.memit(case.model, case.tokenizer, first, memory=memory, **arguments)
            keys = None if memory is None else memory[1].clone()
            delta = editors.memit(case.model, case.tokenizer, second, memory=memory, **arguments)[1]
            if keys is not None:
                earlier = keys
                assert torch.equal(memory[1][:, :2], keys)
                assert memory[1].shape[1] == 4
            moved[name] = delta
    assert (moved["kept"] @ earlier).norm() < (moved["none"] @ earlier).norm()


def test_fine_tuning_and_its_bound(case: Case) -> None:
    facts, eps = TINY_FACTS[:3], 2e-3
    before, bias = layout.weight(case.model, 1), layout.bias(case.model, 1)
    nll_before = sum(case.target_nll(fact) for fact in facts)
    with layout.restored(case.model, [1]):
        free = editors.finetune(case.model, case.tokenizer, facts, 1, lr=5e-3)
        assert_close(layout.weight(case.model, 1), before + free[1])
        assert torch.equal(layout.bias(case.model, 1), bias)
        assert sum(case.target_nll(fact) for fact in facts) < nll_before
        assert free[1].abs().max() > eps
    with layout.restored(case.model, [1]):
        bounded = editors.finetune(case.model, case.tokenizer, facts, 1, lr=5e-3, bound=eps)
        assert bounded[1].abs().max() <= eps * (1 + 1e-9)
        again = editors.finetune(case.model, case.tokenizer, facts, 1, lr=5e-3, bound=eps)
        assert (bounded[1] + again[1]).abs().max() > 1.5 * eps  # centred on each edit's start
    with layout.restored(case.model, [1]):
        for _ in range(2):
            editors.finetune(case.model, case.tokenizer, facts, 1, lr=5e-3, bound=eps, centre=before)
        assert (layout.weight(case.model, 1) - before).abs().max() <= eps * (1 + 1e-9)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in case.model.parameters())


def test_fine_tuning_one_step_is_adams(case: Case) -> None:
    fact = TINY_FACTS[3]
    target = target_ids(case.tokenizer, fact.target)
    ids = torch.tensor([prompt_row(case.tokenizer, fact).ids + target])
    labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - len(target), -100, ids)
    W = layout.stored(case.model, 1)
    (gradient,) = torch.autograd.grad(case.model(ids, labels=labels).loss, W)
    with layout.restored(case.model, [1]):
        delta = editors.finetune(case.model, case.tokenizer, [fact], 1, lr=1e-3, steps=1)[1]
    gradient = gradient.T if layout.layout_of(case.model).in_out else gradient
    assert_close(delta, -1e-3 * gradient / (gradient.abs() + 1e-8), 1e-8)


def test_restored_puts_every_bit_back(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    with layout.restored(case.model, LAYERS):
        for layer in LAYERS:
            layout.add_to_weight(case.model, layer, torch.ones_like(layout.weight(case.model, layer)))
        assert not all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())


def test_second_moments_are_means_over_tokens(case: Case) -> None:
    blocks = token_blocks(case.tokenizer)[:3]
    moments = second_moments(case.model, blocks, [1])
    keys = []
    handle = layout.down(case.model, 1).register_forward_hook(lambda _m, inputs, _o: keys.append(inputs[0]))
    with torch.no_grad():
        case.model(blocks)
    handle.remove()
    expected = torch.stack([torch.outer(key, key) for row in keys[0] for key in row]).mean(dim=0)
    assert_close(moments[1], expected)


def test_float32_edit_stays_in_float32_and_near_float64() -> None:
    tokenizer, deltas = tiny_tokenizer(bos=True), []
    for dtype in (torch.float32, torch.float64):
        model = tiny_llama(dtype, seed=2)
        C0 = second_moments(model, token_blocks(tokenizer), [1])[1] + 1e-2 * torch.eye(
            40, dtype=torch.float64
        )
        settings = Settings(lr=0.1, steps=4)
        deltas.append(editors.r_rome(model, tokenizer, TINY_FACTS[0], TINY_CONTEXTS, 1, C0, settings)[1])
        assert layout.stored(model, 1).dtype == dtype
    assert (deltas[0] - deltas[1]).norm() < 1e-3 * deltas[1].norm()
