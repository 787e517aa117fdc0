"""MEND (Mitchell et al. 2022, arXiv 2110.11309)."""

from collections.abc import Iterable

from jaxedit.editors.hypernet import HyperConfig


def mend_config(layers: Iterable[int], gated: bool, rank: int = 1920) -> HyperConfig:
    """All MLP matrices of `layers`, the last three in the paper; pairs of all tokens of prompt and target."""
    matrices = ("mlp.up", "mlp.gate", "mlp.down") if gated else ("mlp.up", "mlp.down")
    return HyperConfig(tuple(layers), matrices, "all", "sum", rank)
