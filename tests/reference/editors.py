"""Whole edits: each writes the weights in place and returns {layer: Delta [d_v, d_k]} in float64.

Undo with `layout.restored`. Contexts are shared by the facts of a call and must hold "" (the bare prompt).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import closed_forms, layout
from .facts import Fact, pad, prompt_row, target_ids, with_target
from .keys import bare, lookup_features, mean_over_contexts
from .values import Settings, Value, optimise_value

Deltas = dict[int, Tensor]
Memory = dict[int, Tensor]  # layer -> K_p [d_k, keys so far]


def values_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    settings: Settings,
) -> list[Value]:
    """The block-site value of every fact, one after the other, on the same weights."""
    return [
        optimise_value(model, tokenizer, fact, contexts, layer, site="block", **asdict(settings))
        for fact in facts
    ]


def rome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[str],
    layer: int,
    C0: Tensor,
    settings: Settings,
) -> Deltas:
    """kbar is the plain mean over contexts, k and the residual v* - (W k + b) are the bare prompt's."""
    value = optimise_value(model, tokenizer, fact, contexts, layer, site="mlp", **asdict(settings))
    features = lookup_features(model, tokenizer, fact, contexts, layer)
    residual = value.z.double() - bare(features.mlp, contexts).double()
    kbar = mean_over_contexts(features.key.double(), contexts, "plain")
    delta = closed_forms.rome(C0, kbar, bare(features.key, contexts), residual)
    layout.add_to_weight(model, layer, delta)
    return {layer: delta}


def r_rome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[str],
    layer: int,
    C0: Tensor,
    settings: Settings,
) -> Deltas:
    """The mean key and the mean output everywhere: residual = v* - mean_i (W k_i + b)."""
    value = optimise_value(model, tokenizer, fact, contexts, layer, site="mlp", **asdict(settings))
    features = lookup_features(model, tokenizer, fact, contexts, layer)
    residual = value.z.double() - mean_over_contexts(features.mlp.double(), contexts, "plain")
    delta = closed_forms.r_rome(C0, mean_over_contexts(features.key.double(), contexts, "plain"), residual)
    layout.add_to_weight(model, layer, delta)
    return {layer: delta}


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    last: int,
    values: Sequence[Value],
) -> tuple[Tensor, Tensor]:
    """With the present weights: K [d_k, n] of `layer` ("half" mean), and z - h_now [d_v, n].

    h_now is the bare prompt's output of block `last`.
    """
    keys, missing = [], []
    for fact, value in zip(facts, values, strict=True):
        here = lookup_features(model, tokenizer, fact, contexts, layer)
        there = lookup_features(model, tokenizer, fact, [""], last)
        keys.append(mean_over_contexts(here.key.double(), contexts, "half"))
        missing.append(value.z.double() - there.block[0].double())
    return torch.stack(keys, dim=1), torch.stack(missing, dim=1)


def remember(memory: Memory | None, layer: int, K: Tensor) -> None:
    """Append the keys of this batch to K_p of the layer."""
    if memory is not None:
        memory[layer] = torch.cat([memory[layer], K], dim=1) if layer in memory else K


def memit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layers: Sequence[int],
    C0: Mapping[int, Tensor],
    settings: Settings,
    lam: float,
    lam_n: float = 0.0,
    memory: Memory | None = None,
    values: Sequence[Value] | None = None,
) -> Deltas:
    """z at the last layer's block; then layer by layer, each on the weights just written,
    R = (z - h_now) / (layers left) and Delta = R K^T (lam C0 + lam_n I + K_p K_p^T + K K^T)^-1.

    `memory` holds K_p and gains this batch's keys; None keeps none. `values` skips the optimisation.
    """
    if values is None:
        values = values_of(model, tokenizer, facts, contexts, layers[-1], settings)
    deltas: Deltas = {}
    for number, layer in enumerate(layers):
        K, missing = gather(model, tokenizer, facts, contexts, layer, layers[-1], values)
        A = closed_forms.preservation(C0[layer], lam, lam_n, None if memory is None else memory.get(layer))
        deltas[layer] = closed_forms.memit(K, missing / (len(layers) - number), A)
        layout.add_to_weight(model, layer, deltas[layer])
        remember(memory, layer, K)
    return deltas


def memit_behind_norms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layers: Sequence[int],
    C0: Mapping[int, Tensor],
    settings: Settings,
    lam: float,
    memory: Memory | None = None,
) -> Deltas:
    """MEMIT where a norm follows the MLP: layer by layer, each on the weights just written, a value z of its own at
    the down-projection's output, R = (z - W k - b) / (layers left) at the "half" mean k of the keys.
    """
    deltas: Deltas = {}
    for number, layer in enumerate(layers):
        keys, missing = [], []
        for fact in facts:
            value = optimise_value(model, tokenizer, fact, contexts, layer, site="mlp", **asdict(settings))
            here = lookup_features(model, tokenizer, fact, contexts, layer)
            keys.append(mean_over_contexts(here.key.double(), contexts, "half"))
            missing.append(value.z.double() - mean_over_contexts(here.mlp.double(), contexts, "half"))
        K, R = torch.stack(keys, dim=1), torch.stack(missing, dim=1)
        A = closed_forms.preservation(C0[layer], lam, 0.0, None if memory is None else memory.get(layer))
        deltas[layer] = closed_forms.memit(K, R / (len(layers) - number), A)
        layout.add_to_weight(model, layer, deltas[layer])
        remember(memory, layer, K)
    return deltas


def emmet(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    C0: Tensor,
    settings: Settings,
    lam: float,
    lam_n: float = 0.0,
    eps: float = 0.1,
    memory: Memory | None = None,
    values: Sequence[Value] | None = None,
) -> Deltas:
    """MEMIT's values and keys at one layer, R = z - h_now; eps counts only for more than one fact."""
    if values is None:
        values = values_of(model, tokenizer, facts, contexts, layer, settings)
    K, R = gather(model, tokenizer, facts, contexts, layer, layer, values)
    A = closed_forms.preservation(C0, lam, lam_n, None if memory is None else memory.get(layer))
    delta = closed_forms.emmet(K, R, A, eps if len(facts) > 1 else 0.0)
    layout.add_to_weight(model, layer, delta)
    remember(memory, layer, K)
    return {layer: delta}


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    lr: float = 5e-4,
    steps: int = 25,
    bound: float | None = None,
    centre: Tensor | None = None,
) -> Deltas:
    """FT: `steps` Adam updates of one down-projection.

    The loss is mean over facts of mean_t -log p(target_t | prompt, target_<t). FT-L is `bound`: after each
    update every entry is clamped to centre +- bound; the centre [d_v, d_k] is the weight at the start of this
    edit unless given (the unedited weight bounds a whole sequence).
    """
    targets = [target_ids(tokenizer, fact.target) for fact in facts]
    prompts = [prompt_row(tokenizer, fact) for fact in facts]
    batch = pad(
        [with_target(row, target) for row, target in zip(prompts, targets, strict=True)], model.device
    )
    before = layout.weight(model, layer)
    with layout.frozen(model):
        W = layout.stored(model, layer)
        if centre is None:
            middle = W.detach().clone()
        else:
            middle = (centre.T if layout.layout_of(model).in_out else centre).to(W)
        W.requires_grad_(True)
        adam = torch.optim.Adam([W], lr=lr)
        for _ in range(steps):
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            log_p = torch.log_softmax(logits, dim=-1)
            of_facts = []
            for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
                end = len(prompt.ids) - 1
                of_tokens = [-log_p[row, end + step, token] for step, token in enumerate(target)]
                of_facts.append(torch.stack(of_tokens).mean())
            adam.zero_grad()
            torch.stack(of_facts).mean().backward()
            adam.step()
            if bound is not None:
                with torch.no_grad():
                    W.clamp_(min=middle - bound, max=middle + bound)
        W.grad = None
    return {layer: layout.weight(model, layer) - before}
