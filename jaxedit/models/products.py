"""Products of few rows with a matrix: on a CPU, reading the matrix is most of the work.

XLA's CPU backend reads a matrix well along its rows only: for 16 rows of the MLPs of 20 layers of SmolLM2-135M it
needs 13 to 15 ms for `(M g^T)^T`, with M as it is stored, and 33 to 38 ms for `x @ M`. So the gradient of a product
is computed in columns, and the product itself too where a transposed copy of the matrix is at hand (`columns`).
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

BACKWARD, FORWARD, TABLE = 128, 96, 32  # rows from which on both ways are as fast
FEWEST = 2  # one row reads the table as it is at its full rate
VECTOR = 8  # numbers of a vector of AVX2; rows are padded to whole ones


def product(
    x: Float[Array, "*N d_in"],
    kernel: Float[Array, "d_in d_out"],
    columns: Float[Array, "d_out d_in"] | None = None,
) -> Float[Array, "*N d_out"]:
    """`x @ kernel`, in the wider of both dtypes; `columns` is a transposed copy of the kernel."""
    rows = rows_for_columns(x)
    if rows > BACKWARD:
        return jnp.matmul(x, kernel, precision="highest")
    return _of_few(x, kernel, columns if rows <= FORWARD else None)


def product_with_table(
    x: Float[Array, "*N d"], table: Float[Array, "V d"], rows: Float[Array, "d V"] | None = None
) -> Float[Array, "*N V"]:
    """`x @ table^T`, which is never transposed; `rows` is a transposed copy of the table."""
    if not FEWEST <= rows_for_columns(x) <= TABLE:
        return jnp.einsum("...d,vd->...v", x, table, precision="highest")
    return _of_few(x, rows, table)


def rows_for_columns(x: Float[Array, "*N d"]) -> float:
    """How many rows x has; on anything but a CPU, where columns gain nothing, infinitely many."""
    return math.prod(x.shape[:-1]) if jax.default_backend() == "cpu" else math.inf


@custom_vmap
def in_columns(x: Float[Array, "*N d_in"], matrix: Float[Array, "d_out d_in"]) -> Float[Array, "*N d_out"]:
    """`x @ matrix^T` as `(matrix @ x^T)^T`."""
    rows = x.reshape(-1, x.shape[-1])
    padded = jnp.pad(rows, ((0, -len(rows) % VECTOR), (0, 0)))
    # Without the barriers XLA folds both transpositions into the product that they are to replace.
    columns = jax.lax.optimization_barrier(padded.T)
    found = jax.lax.optimization_barrier(jnp.matmul(matrix, columns, precision="highest")).T[: len(rows)]
    return found.reshape(*x.shape[:-1], len(matrix))


@in_columns.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array, matrix: Array) -> tuple[Array, bool]:
    """What is mapped over one matrix are more rows of it; of many, or of many matrices, columns are not made."""
    if not in_batched[1] and rows_for_columns(x) <= BACKWARD:
        return in_columns(x, matrix), True
    rows, matrices = ("s" if batched else "" for batched in in_batched)
    return jnp.einsum(f"{rows}...i,{matrices}oi->s...o", x, matrix, precision="highest"), True


def times(x: Array, kernel: Array | None, columns: Array | None) -> Array:
    """`x @ kernel` from its transposed copy, or where there is none from the kernel."""
    if columns is not None:
        return in_columns(x, columns)
    assert kernel is not None
    return jnp.matmul(x, kernel, precision="highest")


@jax.custom_vjp
def _of_few(x: Array, kernel: Array | None, columns: Array | None) -> Array:
    return times(x, kernel, columns)


Saved = tuple[Array, Array | None, Array | None]


def _forward(x: Array, kernel: Array | None, columns: Array | None) -> tuple[Array, Saved]:
    return times(x, kernel, columns), (x, kernel, columns)


def _backward(saved: Saved, g: Array) -> Saved:
    """The gradient of a matrix given in both layouts is that of the kernel; a copy has none."""
    x, kernel, columns = saved
    by_x = times(g, columns, kernel).astype(x.dtype)
    rows, back = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if kernel is not None:
        return by_x, jnp.matmul(rows.T, back, precision="highest").astype(kernel.dtype), None
    assert columns is not None
    return by_x, None, jnp.matmul(back.T, rows, precision="highest").astype(columns.dtype)


_of_few.defvjp(_forward, _backward)
