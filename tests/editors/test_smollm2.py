"""The real model against the oracle in float64: values after all steps, and every closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from jaxedit.data import encode_requests, token_blocks, world_facts, world_text
from jaxedit.editors.closed_form import preservation, solve, write
from jaxedit.errors import ModelError
from jaxedit.linalg import dense
from jaxedit.lookup import rows_of, split_pass
from jaxedit.models.sources import Checkpoint, load
from jaxedit.statistics import second_moments
from jaxedit.values import ValueConfig, lookup_value, optimise_values, value_loss
from tests.cases import oracle_facts, relative
from tests.reference import closed_forms
from tests.reference.keys import bare, lookup_features, mean_over_contexts
from tests.reference.tiny import exact
from tests.reference.values import optimise_value

pytestmark = pytest.mark.slow

LAYER = 8
CONTEXTS = ("", "The weather was fine", "I went there last year and found")
FACTS = tuple(world_facts(0)[:3])
CONFIG = ValueConfig(clamp=4.0)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    try:
        return load("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"SmolLM2-135M cannot be fetched: {error}")


@pytest.fixture(scope="module")
def oracle(smollm2: Checkpoint) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        smollm2.folder, dtype=torch.float64, attn_implementation="sdpa"
    )
    return exact(model).eval()


@pytest.fixture(scope="module")
def C0(smollm2: Checkpoint) -> np.ndarray:
    blocks = token_blocks(world_text(0), smollm2.tokenizer, 128, 20 * 1536)
    return np.asarray(second_moments(smollm2.model, smollm2.params, blocks, [LAYER])[LAYER])


@pytest.mark.parametrize("site", ["mlp", "block"])
def test_values(smollm2: Checkpoint, oracle: PreTrainedModel, site: str) -> None:
    """First gradient to 1e-5, z after all steps to 1e-3, and as many updates."""
    config = ValueConfig(**{**vars(CONFIG), "site": site})
    requests = encode_requests(FACTS[:1], smollm2.tokenizer, CONTEXTS, max_length=64)

    @jax.jit
    def ours(params, requests):
        decoder, rows = smollm2.model.bind(params), rows_of(requests)
        split = split_pass(decoder, rows, LAYER, LAYER)
        origin = lookup_value(split, requests, LAYER, site)
        loss = value_loss(decoder, requests, rows, split, LAYER, origin, config)
        gradient = jax.grad(lambda delta: loss(delta).sum())(jnp.zeros_like(origin))
        return gradient, optimise_values(decoder, requests, rows, split, LAYER, config)

    gradient, values = ours(smollm2.params, jax.tree.map(jnp.asarray, requests))
    theirs = optimise_value(
        oracle,
        smollm2.tokenizer,
        oracle_facts(FACTS)[0],
        CONTEXTS,
        LAYER,
        site=site,
        lr=config.learning_rate,
        steps=config.steps,
        weight_decay=config.weight_decay,
        clamp=config.clamp,
        kl=config.kl,
        stop_loss=config.stop_loss,
    )
    assert int(values.updates[0]) == theirs.updates > 3
    assert relative(gradient[0], theirs.first_gradient) <= 1e-5
    assert relative(values.target[0], theirs.z) <= 1e-3


@pytest.mark.parametrize("form", ["rome", "r-rome", "memit", "emmet"])
def test_closed_forms(smollm2: Checkpoint, oracle: PreTrainedModel, C0: np.ndarray, form: str) -> None:
    """Delta to 1e-4 relative, given the same keys and residuals."""
    facts = oracle_facts(FACTS)[: 1 if "rome" in form else 3]
    with torch.no_grad():
        features = [lookup_features(oracle, smollm2.tokenizer, fact, CONTEXTS, LAYER) for fact in facts]
    how = "plain" if "rome" in form else "half"
    K = torch.stack([mean_over_contexts(f.key, CONTEXTS, how) for f in features], dim=1)
    query = torch.stack([bare(f.key, CONTEXTS) for f in features], dim=1) if form == "rome" else K
    R = torch.randn(576, len(facts), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact_C0, lam, eps = torch.tensor(C0, dtype=torch.float64), 100.0, 0.1
    expected = {
        "rome": lambda: closed_forms.rome(exact_C0, K[:, 0], query[:, 0], R[:, 0]),
        "r-rome": lambda: closed_forms.r_rome(exact_C0, K[:, 0], R[:, 0]),
        "memit": lambda: closed_forms.memit(K, R, closed_forms.preservation(exact_C0, lam)),
        "emmet": lambda: closed_forms.emmet(K, R, closed_forms.preservation(exact_C0, lam), eps),
    }[form]()
    keys, at, residual = (jnp.asarray(x.T.numpy(), jnp.float32) for x in (K, query, R))
    kept = preservation(jnp.asarray(C0), 1.0 if "rome" in form else lam)
    ridge = {"rome": 0.0, "r-rome": 0.0, "memit": 1.0, "emmet": eps}[form]
    found = dense(write(solve(kept, keys), at, residual, ridge, jnp.ones(len(facts))))
    assert relative(found, expected.T) <= 1e-4
