"""MEMIT (Meng et al. 2023, arXiv 2210.07229) and EMMET (Gupta et al. 2024, arXiv 2403.14236)."""

from collections.abc import Iterable

from jaxedit.editors.locate import LocateConfig
from jaxedit.values import ValueConfig


def memit_config(layers: Iterable[int], lam: float, memory: bool = False) -> LocateConfig:
    """Least squares over a batch of facts, the residual spread evenly over the layers that are left.

    With `memory` the keys of earlier edits count like C0's: sequential updates then sum to the joint one.
    """
    return LocateConfig(layers=tuple(layers), lam=lam, ridge=1.0, memory=memory, values=ValueConfig())


def emmet_config(layer: int, lam: float, eps: float = 0.1) -> LocateConfig:
    """Equality constraints over a batch, softened by `eps` when there is more than one fact."""
    return LocateConfig(layers=(layer,), lam=lam, ridge=eps, single_ridge=0.0, values=ValueConfig())
