"""AlphaEdit (Fang et al. 2025, arXiv 2410.02355) and EvoEdit (Lyu et al. 2025, arXiv 2510.13851)."""

from collections.abc import Iterable
from dataclasses import replace

from jaxedit.editors.config import LocateConfig
from jaxedit.values import ValueConfig


def alphaedit_config(
    layers: Iterable[int],
    lam_n: float = 10.0,
    threshold: float | None = None,
    fraction: float | None = None,
) -> LocateConfig:
    """A ridge within the null space of C0: what the corpus uses most is not written at all.

    With `Kt = P K` it is `R Kt^T (lam_n I + Kt_p Kt_p^T + Kt Kt^T)^-1`, which the paper's unsymmetric solve
    equals. The null space is given by an eigenvalue's `threshold` (the paper: 0.02) or as a `fraction` of
    all directions. As in the paper the keys remembered are those after all layers were edited;
    `memory_keys="solved"` remembers them as they were written.
    """
    return LocateConfig(
        layers=tuple(layers),
        lam=0.0,
        lam_n=lam_n,
        null_threshold=threshold,
        null_fraction=fraction,
        memory=True,
        memory_keys="recomputed",
        values=ValueConfig(),
    )


def evoedit_config(
    layers: Iterable[int],
    lam_n: float = 4.0,
    threshold: float | None = None,
    fraction: float | None = None,
) -> LocateConfig:
    """AlphaEdit whose null space loses the keys of every batch: `P <- P - Q Q^T`, Q spanning P K.

    Equal to AlphaEdit with earlier keys of infinite weight; P's rank falls by n a batch.
    """
    alphaedit = alphaedit_config(layers, lam_n, threshold, fraction)
    return replace(alphaedit, beta=None, memory_keys="solved")
