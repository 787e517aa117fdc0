"""What is asked of all rows of a `vmap` at once: one answer, and a branch that stays one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.batching import all_of, largest
from tests.cases import equations

ROWS = jnp.array([[[1, 2], [3, 4]], [[5, 6], [0, 8]]])


def signed(x: Array) -> Array:
    return jax.lax.cond(all_of(x > 0), lambda: x, lambda: -x)


def test_all_rows_decide_together() -> None:
    np.testing.assert_array_equal(jax.vmap(signed)(ROWS[0]), ROWS[0])
    np.testing.assert_array_equal(jax.vmap(signed)(ROWS[1]), -ROWS[1])
    np.testing.assert_array_equal(jax.vmap(jax.vmap(signed))(ROWS), -ROWS)
    assert jax.vmap(largest, out_axes=None)(ROWS) == 8


def test_the_branch_is_no_choice() -> None:
    names = [equation.primitive.name for equation in equations(jax.make_jaxpr(jax.vmap(signed))(ROWS).jaxpr)]
    assert "cond" in names
    assert "select_n" not in names
