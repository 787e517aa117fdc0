"""Tokens that rows have in common from their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.lookup import Rows, prefix_pass, rows_of
from jaxedit.models.attention import Memory
from jaxedit.models.sharing import owned, owners
from tests.cases import FACTS, Case

RANDOM = np.random.default_rng(0)


def by_hand(tokens: np.ndarray, valid: np.ndarray) -> dict[tuple[int, int], int]:
    """The first place of every beginning of every row."""
    found: dict[tuple[int, ...], int] = {}
    place = {}
    for row in range(len(tokens)):
        seen: tuple[int, ...] = ()
        for column in np.flatnonzero(valid[row]):
            seen = (*seen, int(tokens[row, column]))
            place[row, int(column)] = found.setdefault(seen, row * tokens.shape[1] + int(column))
    return place


@pytest.mark.parametrize("side", ["left", "right"])
def test_owners_are_the_first_places_of_every_beginning(side: str) -> None:
    tokens = RANDOM.integers(0, 2, (40, 6))
    length = RANDOM.integers(0, 7, (40, 1))
    valid = np.arange(6) < length if side == "right" else np.arange(6) >= 6 - length
    found = np.asarray(jax.jit(owners)(tokens, valid))
    place = by_hand(tokens, valid)
    assert place == {key: int(found[key]) for key in place}
    assert int(owned(found, valid).sum()) == len(set(place.values()))


def test_shared_prefixes_run_once_and_come_out_the_same(gpt2: Case) -> None:
    rows = rows_of(gpt2.encode(FACTS))
    owner = owners(rows.prefix, rows.prefix_valid)
    needed = int(owned(owner, rows.prefix_valid).sum()) / rows.prefix.size
    assert needed < 0.9 * float(rows.prefix_valid.mean())  # these facts do have beginnings in common

    def run(params, rows: Rows, shares):
        return prefix_pass(gpt2.model.bind(params), rows, 1, shares)

    compiled = jax.jit(run, static_argnums=2)
    params = gpt2.params((1,))
    whole = compiled(params, rows, ())
    for shares in ((0.5 * needed, needed + 1e-6), (0.5 * needed,)):  # the second holds it, then none
        found = compiled(params, rows, shares)
        for a, b in zip(by_tokens(*found), by_tokens(*whole), strict=True):
            np.testing.assert_allclose(a[rows.prefix_valid], b[rows.prefix_valid], atol=2e-6)


def by_tokens(hidden: Array, memory: dict[int, Memory]) -> list[Array]:
    """All of it with the tokens on the second axis."""
    kept = [layer.by_tokens(lambda x, axis: jnp.moveaxis(x, axis, 1)) for layer in memory.values()]
    return jax.tree.leaves((hidden, kept))
