"""Sequences of edits by the methods that remember: each writes the weights in place, batch after batch.

Every function returns one {layer: Delta [d_v, d_k]} a batch, in float64. Undo with `layout.restored`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import closed_forms as forms
from . import layout
from .editors import Deltas, gather, values_of
from .facts import Fact
from .keys import lookup_features
from .values import Settings, Value, optimise_value

Batches = Sequence[Sequence[Fact]]
Form = Callable[[int, Tensor, Tensor], Tensor]  # layer, K, R -> Delta


@dataclass(frozen=True)
class Scene:
    """What all batches of a sequence share; `optimised` gathers the values in the order they were found."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contexts: Sequence[str]
    layers: Sequence[int]
    C0: Mapping[int, Tensor]
    settings: Settings
    optimised: list[list[Value]] = field(default_factory=list)

    def values(self, facts: Sequence[Fact], layer: int) -> list[Value]:
        values = values_of(self.model, self.tokenizer, facts, self.contexts, layer, self.settings)
        self.optimised.append(values)
        return values

    def gather(
        self, facts: Sequence[Fact], layer: int, last: int, values: Sequence[Value]
    ) -> tuple[Tensor, Tensor]:
        return gather(self.model, self.tokenizer, facts, self.contexts, layer, last, values)

    def keys(self, facts: Sequence[Fact], values: Sequence[Value]) -> dict[int, Tensor]:
        """K of every layer with the present weights."""
        return {layer: self.gather(facts, layer, layer, values)[0] for layer in self.layers}


class History:
    """K_p by layer."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def __getitem__(self, layer: int) -> Tensor | None:
        return self.of.get(layer)

    def add(self, keys: Mapping[int, Tensor]) -> None:
        for layer, K in keys.items():
            self.of[layer] = torch.cat([self.of[layer], K], dim=1) if layer in self.of else K


def spread_over_layers(
    scene: Scene, facts: Sequence[Fact], form: Form, values: Sequence[Value], how: str = "even"
) -> tuple[Deltas, dict[int, Tensor]]:
    """Layer by layer, each on the weights just written; returns the keys as they were at each solve too."""
    deltas, keys = {}, {}
    for number, layer in enumerate(scene.layers):
        K, missing = scene.gather(facts, layer, scene.layers[-1], values)
        left = len(scene.layers) - number
        share = {"even": 1 / left, "sqrt": left**-0.5, "last": float(left == 1)}[how]
        deltas[layer], keys[layer] = form(layer, K, missing * share), K
        layout.add_to_weight(scene.model, layer, deltas[layer])
    return deltas, keys


def memit(scene: Scene, batches: Batches, lam: float, lam_n: float = 0.0, how: str = "even") -> list[Deltas]:
    """With history, keys as solved; ENCORE with lam_n and settings that stop early."""
    history, result = History(), []
    for facts in batches:
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.memit(K, R, forms.preservation(scene.C0[layer], lam, lam_n, history[layer]))

        deltas, keys = spread_over_layers(scene, facts, form, values, how)
        history.add(keys)
        result.append(deltas)
    return result


def alphaedit(
    scene: Scene, batches: Batches, P: Mapping[int, Tensor], l2: float, recomputed: bool = True
) -> list[Deltas]:
    """The published unsymmetric solve; keys recomputed after all layers, or as solved."""
    history, result = History(), []
    for facts in batches:
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.alphaedit(P[layer], K, R, l2, history[layer])

        deltas, keys = spread_over_layers(scene, facts, form, values)
        history.add(scene.keys(facts, values) if recomputed else keys)
        result.append(deltas)
    return result


def evoedit(scene: Scene, batches: Batches, P: Mapping[int, Tensor], l2: float) -> list[Deltas]:
    """P loses the span of P K after every batch."""
    left, result = dict(P), []
    for facts in batches:
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.alphaedit(left[layer], K, R, l2)

        deltas, keys = spread_over_layers(scene, facts, form, values)
        left.update({layer: forms.without(left[layer], K) for layer, K in keys.items()})
        result.append(deltas)
    return result


def betaedit(
    scene: Scene, batches: Batches, lam: float, l2: float, fraction: float, refresh: int
) -> list[Deltas]:
    """P anew once `refresh` edits have come since it was taken, from (K_p K_p^T / N + lam C0) / (1 + lam)."""
    history, result, count, taken = History(), [], 0, 0
    P = {layer: forms.smallest_projector(scene.C0[layer], fraction) for layer in scene.layers}
    for facts in batches:
        if count - taken >= refresh:
            for layer in scene.layers:
                K_p = history.of[layer]
                P[layer] = forms.smallest_projector(
                    (K_p @ K_p.T / count + lam * scene.C0[layer]) / (1 + lam), fraction
                )
            taken = count
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.betaedit(P[layer], K, R, scene.C0[layer], lam, l2, history[layer])

        deltas, keys = spread_over_layers(scene, facts, form, values)
        history.add(keys)
        count += len(facts)
        result.append(deltas)
    return result


def langedit(scene: Scene, batches: Batches, l2: float, fraction: float, corpus: float) -> list[Deltas]:
    """P anew for every batch, from (N_0 C0 + K_p K_p^T) / (N_0 + N); keys recomputed after all layers."""
    history, result = History(), []
    P: dict[int, Tensor] = {}
    for facts in batches:
        for layer in scene.layers:
            K_p = history[layer]
            mean = scene.C0[layer]
            if K_p is not None:
                mean = (corpus * mean + K_p @ K_p.T) / (corpus + K_p.shape[1])
            P[layer] = forms.smallest_projector(mean, fraction)
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.alphaedit(P[layer], K, R, l2, history[layer])

        deltas, _ = spread_over_layers(scene, facts, form, values)
        history.add(scene.keys(facts, values))
        result.append(deltas)
    return result


def lyaplock(scene: Scene, batches: Batches, lam: float, allowance: float) -> list[Deltas]:
    """As in the paper: weight lam a Z_t, a = 1 / sqrt(B), Z <- max(Z + a (L - B), sqrt(B)), B = allowance D."""
    start = {layer: layout.weight(scene.model, layer) for layer in scene.layers}
    earlier: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in scene.layers}
    bound: dict[int, Tensor] = {}
    queue: dict[int, Tensor] = {}
    result = []
    for facts in batches:
        values = scene.values(facts, scene.layers[-1])

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            weight = lam if layer not in queue else lam * float(queue[layer] / bound[layer].sqrt())
            W = layout.weight(scene.model, layer)
            return forms.lyaplock(W, start[layer], K, R, scene.C0[layer], weight, earlier[layer])

        deltas, keys = spread_over_layers(scene, facts, form, values)
        for layer, K in keys.items():
            W = layout.weight(scene.model, layer)
            earlier[layer].append((K, W @ K))
            loss = torch.trace((W - start[layer]) @ scene.C0[layer] @ (W - start[layer]).T)
            if layer not in bound:
                bound[layer] = allowance * loss
                queue[layer] = bound[layer].sqrt()
            moved = queue[layer] + (loss - bound[layer]) / bound[layer].sqrt()
            queue[layer] = torch.maximum(moved, bound[layer].sqrt())
        result.append(deltas)
    return result


def d4s(scene: Scene, batches: Batches, lam: float) -> list[Deltas]:
    """After every batch W = W_0 + (sum R K^T) (lam C0 + sum K K^T)^-1; values, keys and residuals are W_0's."""
    start = {layer: layout.weight(scene.model, layer) for layer in scene.layers}
    A = {layer: lam * scene.C0[layer] for layer in scene.layers}
    summed = {layer: torch.zeros_like(start[layer]) for layer in scene.layers}
    result = []
    for facts in batches:
        present = {layer: layout.weight(scene.model, layer) for layer in scene.layers}
        with layout.restored(scene.model, scene.layers):
            for layer in scene.layers:
                layout.add_to_weight(scene.model, layer, start[layer] - present[layer])
            values = scene.values(facts, scene.layers[-1])
            read = {layer: scene.gather(facts, layer, scene.layers[-1], values) for layer in scene.layers}
        deltas = {}
        for layer, (K, missing) in read.items():
            summed[layer] = summed[layer] + missing / len(scene.layers) @ K.T
            A[layer] = A[layer] + K @ K.T
            deltas[layer] = start[layer] + torch.linalg.solve(A[layer], summed[layer].T).T - present[layer]
            layout.add_to_weight(scene.model, layer, deltas[layer])
        result.append(deltas)
    return result


def blue(scene: Scene, batches: Batches, lam: float) -> list[Deltas]:
    """MEMIT with history on the first and last layer, one after the other, each with its own value."""
    history, result = History(), []
    for facts in batches:
        deltas, keys = {}, {}
        for layer in (scene.layers[0], scene.layers[-1]):
            K, R = scene.gather(facts, layer, layer, scene.values(facts, layer))
            deltas[layer] = forms.memit(K, R, forms.preservation(scene.C0[layer], lam, 0.0, history[layer]))
            keys[layer] = K
            layout.add_to_weight(scene.model, layer, deltas[layer])
        history.add(keys)
        result.append(deltas)
    return result


def nas(scene: Scene, batches: Batches, P: Mapping[int, Tensor], l2: float) -> list[Deltas]:
    """AlphaEdit with v* = v + delta at the first batch's mean norm; a v* of more than twice that is left out."""
    history, result, anchor = History(), [], None
    last = scene.layers[-1]
    for facts in batches:
        values = scene.values(facts, last)
        mlp = [
            lookup_features(scene.model, scene.tokenizer, fact, [""], last).mlp[0].double() for fact in facts
        ]
        wanted = [v + value.delta for v, value in zip(mlp, values, strict=True)]
        if anchor is None:
            anchor = torch.stack([v.norm() for v in wanted]).mean()
        scaled = []
        for v, v_star, value in zip(mlp, wanted, values, strict=True):
            target = v if v_star.norm() > 2 * anchor else v_star * anchor / v_star.norm()
            scaled.append(Value(target - v, value.h0, value.losses, value.first_gradient, value.updates))

        def form(layer: int, K: Tensor, R: Tensor) -> Tensor:
            return forms.alphaedit(P[layer], K, R, l2, history[layer])

        deltas, _ = spread_over_layers(scene, facts, form, scaled)
        history.add(scene.keys(facts, values))
        result.append(deltas)
    return result


def pmet(scene: Scene, batches: Batches, lam: float) -> list[Deltas]:
    """The MLP's vector of the pair is written, R = (v* - v_now) / sqrt(layers left) at the last layer's MLP."""
    result, last = [], scene.layers[-1]
    for facts in batches:
        pairs = [
            optimise_value(
                scene.model,
                scene.tokenizer,
                fact,
                scene.contexts,
                last,
                site="attention+mlp",
                **asdict(scene.settings),
            )
            for fact in facts
        ]
        scene.optimised.append(pairs)
        deltas = {}
        for number, layer in enumerate(scene.layers):
            K = scene.keys(facts, [Value(p.delta[1], p.h0[1], [], None, 0) for p in pairs])[layer]
            now = [
                lookup_features(scene.model, scene.tokenizer, fact, [""], last).mlp[0].double()
                for fact in facts
            ]
            R = torch.stack([p.z[1] - v for p, v in zip(pairs, now, strict=True)], dim=1)
            R = R / (len(scene.layers) - number) ** 0.5
            deltas[layer] = forms.memit(K, R, forms.preservation(scene.C0[layer], lam))
            layout.add_to_weight(scene.model, layer, deltas[layer])
        result.append(deltas)
    return result
