"""ENCORE (Gupta et al. 2025, arXiv 2502.01636)."""

from collections.abc import Iterable
from dataclasses import replace

from jaxedit.editors.config import LocateConfig
from jaxedit.editors.memit import memit_config
from jaxedit.values import ValueConfig


def encore_config(
    layers: Iterable[int], lam: float, lam_n: float = 10.0, patience: int | None = 4
) -> LocateConfig:
    """MEMIT with history, a ridge on the update's norm, and values that stop early (MPES).

    With history the ridge on every update is a ridge on `||W_t - W_0||`: the updates sum to the one-time
    solution from W_0 (also published as RLSEdit, arXiv 2601.15686). Without ridge and early stopping it is
    MEMIT with history.
    """
    return replace(memit_config(layers, lam, memory=True), lam_n=lam_n, values=ValueConfig(patience=patience))
