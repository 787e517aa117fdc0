"""A tiny random model twice, and what editors need with it: the library's in float32, the oracle's in float64."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array
from transformers import PreTrainedModel

from jaxedit.data import Fact, encode_requests, pad_requests
from jaxedit.editors.config import LocateConfig
from jaxedit.models.model import Model
from jaxedit.models.sources import Checkpoint, load
from jaxedit.types import Params, Requests
from tests.reference import facts as reference
from tests.reference.families import RECIPES, tiny_family
from tests.reference.tiny import TINY_CONTEXTS, TINY_FACTS, save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.reference.values import Settings

torch.set_num_threads(1)  # beside XLA's threads more of them only spin

LAYER = 1  # of editors of one layer
SPANS = {"gpt2": (0, 1), "llama": (0, 2)}  # of editors of several; llama's has a gap
BUILDERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
FAMILIES = {family: functools.partial(tiny_family, family) for family in RECIPES}
Inner = Jaxpr | ClosedJaxpr
FACTS = tuple(
    Fact(
        id=f"tiny-{i}", subject=fact.subject, prompt=fact.prompt, target_new=fact.target, target_true="Rouen"
    )
    for i, fact in enumerate(TINY_FACTS)
)


@dataclass(frozen=True, eq=False)
class Case:
    """One architecture. `moments` and `C0` are the same numbers: second moments on random tokens, with a ridge."""

    name: str
    checkpoint: Checkpoint
    oracle: PreTrainedModel  # float64
    blocks: np.ndarray  # the random tokens

    @property
    def model(self) -> Model:
        return self.checkpoint.model

    @property
    def span(self) -> tuple[int, ...]:
        return SPANS.get(self.name, (0, 1))

    @functools.cached_property
    def moments(self) -> dict[int, Array]:
        from jaxedit.statistics import second_moments

        found = second_moments(self.model, self.checkpoint.params, self.blocks, range(3))
        return {layer: C0 + 1e-2 * jnp.eye(len(C0)) for layer, C0 in found.items()}

    @functools.cached_property
    def C0(self) -> dict[int, torch.Tensor]:
        return {
            layer: torch.tensor(np.asarray(C0), dtype=torch.float64) for layer, C0 in self.moments.items()
        }

    def params(self, layers: Iterable[int]) -> Params:
        return self.model.split(self.checkpoint.params, self.model.edited_paths(layers).values())

    def encode(self, facts: Sequence[Fact], contexts: Sequence[str] = TINY_CONTEXTS) -> Requests:
        encoded = encode_requests(facts, self.checkpoint.tokenizer, contexts, max_length=64)
        return jax.tree.map(jnp.asarray, encoded)

    def batch(self, chosen: Sequence[int], size: int) -> Requests:
        """These of `FACTS` in the bare prompt alone, padded to `size` facts."""
        whole = encode_requests(FACTS, self.checkpoint.tokenizer, ("",), max_length=64)
        return pad_requests(type(whole)(*(x[list(chosen)] for x in whole)), size)


def tuned(config: LocateConfig, settings: Settings) -> LocateConfig:
    """The oracle's settings of the value optimisation; compiled for one size, which is faster than for four."""
    values = replace(
        config.values,
        learning_rate=settings.lr,
        steps=settings.steps,
        weight_decay=settings.weight_decay,
        clamp=settings.clamp,
        kl=settings.kl,
        stop_loss=settings.stop_loss,
        patience=settings.patience,
        shares=(),
    )
    return replace(config, values=values)


def make_case(name: str, folder: Path) -> Case:
    """The model of this name: random weights drawn in float32, so that both hold the same numbers."""
    build = (BUILDERS | FAMILIES)[name]
    save_tiny(build(torch.float32), tiny_tokenizer(bos=name not in ("gpt2", "gptj", "gpt_neox")), folder)
    blocks = np.random.default_rng(0).integers(3, 300, (40, 24)).astype(np.int32)
    return Case(name, load(str(folder)), build(torch.float64), blocks)


def relative(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected||, in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two pytrees hold the same bits, NaN included."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    same = all(np.asarray(x).tobytes() == np.asarray(y).tobytes() and x.dtype == y.dtype for x, y in leaves)
    return same and jax.tree.structure(a) == jax.tree.structure(b)


def oracle_facts(facts: Sequence[Fact]) -> list[reference.Fact]:
    """The same facts as the oracle takes them."""
    return [reference.Fact(fact.prompt, fact.subject, fact.target_new) for fact in facts]


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations of a jaxpr, those of loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, Inner)):
            if isinstance(inner, Inner):
                yield from equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
