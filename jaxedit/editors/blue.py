"""BLUE, boundary-layer update (Li et al. 2025, arXiv 2502.03748)."""

from dataclasses import replace

from jaxedit.editors.config import LocateConfig


def blue(config: LocateConfig) -> LocateConfig:
    """Any locate-and-edit method on the first and last of its layers, each with a value of its own.

    The second value is optimised on the model in which the first is already written. Nothing is spread, so
    that no layer is written with a residual measured at another.
    """
    ends = tuple(sorted({config.layers[0], config.layers[-1]}))
    return replace(config, layers=ends, values_at="each")
