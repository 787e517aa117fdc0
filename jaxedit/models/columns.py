"""Transposed copies of frozen matrices, for products of few rows on a CPU (see `jaxedit.models.products`).

A copy is one more leaf among the frozen parameters, named by its module and `columns`; `Model.bind` hands it to the
module.
"""

from collections.abc import Collection

import jax
from jaxtyping import Array

from jaxedit.models.config import DecoderConfig


def column_names(config: DecoderConfig, paths: Collection[str]) -> dict[str, str]:
    """What the copies of these parameters are called: of kernels, and of the table that predictions are read from."""
    names = {path: f"{path.removesuffix('kernel')}columns" for path in paths if path.endswith(".kernel")}
    return names | ({"embedding": "columns"} if config.tied_head and "embedding" in paths else {})


def columns_of(config: DecoderConfig, frozen: dict[str, Array]) -> dict[str, Array]:
    """The copies of all matrices that are not edited."""
    return {name: _transposed(frozen[path]) for path, name in column_names(config, frozen).items()}


_transposed = jax.jit(lambda matrix: matrix.T)
