"""PMET (Li et al. 2023, arXiv 2308.08742)."""

from collections.abc import Iterable

from jaxedit.editors.config import LocateConfig
from jaxedit.values import ValueConfig


def pmet_config(layers: Iterable[int], lam: float = 6000.0) -> LocateConfig:
    """MEMIT with vectors for the attention's and the MLP's output optimised together, the MLP's written.

    What the attention would have to change is so kept out of the MLP's weights. The residual is that of the
    MLP's output at the last layer, spread by the root of the layers left. The release lowers the NLL's weight
    once the target is the most probable answer; here it stays.
    """
    values = ValueConfig(site="attention+mlp", learning_rate=0.2, steps=30, kl=1.0)
    return LocateConfig(layers=tuple(layers), lam=lam, spread="sqrt", values=values)
