"""Transposed copies of frozen matrices: the same numbers, and read where they are given."""

import jax
import jax.numpy as jnp

from jaxedit.models.columns import columns_of
from jaxedit.types import Params
from tests.cases import LAYER, Case, relative


def test_a_model_with_copies_gives_the_same_logits_and_gradients(case: Case) -> None:
    model, params = case.model, case.params([LAYER])
    copies = columns_of(model.config, params.frozen)
    assert len(copies) == sum(path.endswith(".kernel") for path in params.frozen) + model.config.tied_head
    tokens = jnp.arange(14).reshape(2, 7) + 3

    @jax.jit
    def look(params: Params, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        def said(shift: jax.Array) -> jax.Array:
            decoder = model.bind(params)
            position = jnp.broadcast_to(jnp.arange(7), tokens.shape)
            h, _, _ = decoder.run(
                decoder.embed(tokens, position) + shift,
                range(model.config.n_layers),
                position=position,
                mask=jnp.broadcast_to(jnp.tri(7, dtype=bool), (2, 7, 7)),
            )
            return decoder.logits(h)

        logits, pull_back = jax.vjp(said, shift)
        return logits, pull_back(jnp.cos(logits))[0]

    def with_copies(copies: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return look(params._replace(frozen=params.frozen | copies), jnp.zeros((2, 7, model.config.d_model)))

    plain, copied, doubled = map(with_copies, ({}, copies, jax.tree.map(lambda x: 2 * x, copies)))
    for a, b, c in zip(plain, copied, doubled, strict=True):
        assert relative(b, a) <= 1e-5
        assert relative(c, a) > 1e-2, "the copies are not read"
