"""MALMEN (Tan, Zhang and Fu 2023, arXiv 2311.04661)."""

from collections.abc import Iterable

from jaxedit.editors.hypernet import HyperConfig


def malmen_config(layers: Iterable[int], rank: int = 1920) -> HyperConfig:
    """The down-projections of `layers`; pairs of the tokens that predict the answer; learning rate 1e-6.

    The network's blocks are those of the paper's release, which scale and shift behind the rectifier.
    """
    targets = ("mlp.down",)
    return HyperConfig(
        tuple(layers), targets, "answer", "regression", rank, learning_rate=1e-6, affine="outside"
    )
