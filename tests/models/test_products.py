"""The product of few rows with a matrix: value, derivatives, dtypes and axes as those of the plain product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.models.products import BACKWARD, FEWEST, FORWARD, TABLE, product, product_with_table


def of(rows: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Rows, a kernel, and weights of the loss."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((*rows, 24), (24, 40), (*rows, 40))
    x, kernel, weight = map(jax.random.normal, keys, shapes)
    return x, kernel, weight


def plain(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel, precision="highest")


ROWS = [(), (1,), (13,), (16,), (3, 7), (TABLE + 1,), (FORWARD + 1,), (BACKWARD + 1,)]
WAYS = {
    "kernel": lambda x, kernel: product(x, kernel),
    "kernel and its copy": lambda x, kernel: product(x, kernel, jax.lax.stop_gradient(kernel.T)),
    "table": lambda x, kernel: product_with_table(x, kernel.T),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("way", WAYS)
def test_value_and_gradients_are_those_of_a_matrix_product(way: str, rows: tuple[int, ...]) -> None:
    x, kernel, weight = of(rows)

    def loss(call, x, kernel):
        return (weight * jnp.tanh(call(x, kernel))).sum()

    found = jax.jit(jax.value_and_grad(functools.partial(loss, WAYS[way]), argnums=(0, 1)))(x, kernel)
    expected = jax.value_and_grad(functools.partial(loss, plain), argnums=(0, 1))(x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_tables_copy_is_read_for_the_gradient_and_the_table_for_the_value() -> None:
    x, kernel, weight = of((FEWEST,))
    value, pull_back = jax.vjp(functools.partial(product_with_table, table=kernel.T, rows=2 * kernel), x)
    np.testing.assert_allclose(value, plain(x, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull_back(weight)[0], plain(weight, 2 * kernel.T), rtol=1e-5, atol=1e-5)


def test_gradients_keep_the_dtypes_of_a_mixed_product() -> None:
    """A float32 edited matrix in a bfloat16 model."""
    x, kernel, _ = of((5,))
    x = x.astype(jnp.bfloat16)
    found = jax.grad(lambda x, kernel: product(x, kernel).sum(), argnums=(0, 1))(x, kernel)
    expected = jax.grad(lambda x, kernel: plain(x, kernel).sum(), argnums=(0, 1))(x, kernel)
    assert [g.dtype for g in found] == [jnp.bfloat16, jnp.float32]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-2)


def test_many_at_once_are_each_by_itself() -> None:
    x, kernel, _ = of((4, 6))
    kernels = jnp.stack([kernel, 2 * kernel, -kernel, kernel + 1])
    gradient = jax.grad(lambda x, kernel: jnp.square(product(x, kernel)).sum(), argnums=(0, 1))
    together = jax.vmap(gradient)(x, kernels)
    for i in range(4):
        for a, b in zip(together, gradient(x[i], kernels[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [3, BACKWARD], ids=["few", "many"])
@pytest.mark.parametrize("way", WAYS)
def test_many_at_once_over_one_matrix_are_more_rows_of_it(way: str, rows: int) -> None:
    x, kernel, _ = of((4, rows))
    gradient = jax.grad(lambda x: jnp.square(WAYS[way](x, kernel)).sum())
    together = jax.vmap(gradient)(x)
    for i in range(4):
        np.testing.assert_allclose(together[i], gradient(x[i]), rtol=1e-4, atol=1e-4)
