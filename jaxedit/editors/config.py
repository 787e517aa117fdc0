"""The settings of locate-and-edit methods; each method is a choice among these."""

from dataclasses import dataclass, field
from typing import Literal

from jaxedit.values import ValueConfig


@dataclass(frozen=True)
class LocateConfig:
    """What distinguishes the locate-and-edit methods from each other."""

    layers: tuple[int, ...]  # written in this order
    lam: float  # weight of the second moment C0 in the preservation matrix
    lam_n: float = 0.0  # ridge on the update
    ridge: float = 1.0  # 1: MEMIT; eps: EMMET; 0: constraints hold exactly
    single_ridge: float | None = None  # ridge for a single fact; None: the same
    key_mean: Literal["plain", "half"] = (
        "half"  # over contexts; half: bare prompt and prefixes weigh the same
    )
    query: Literal["mean", "bare"] = "mean"  # where the constraint is posed: at the mean key or the bare one
    null_threshold: float | None = None  # write only along eigenvectors of C0 with eigenvalue below (P)
    null_fraction: float | None = (
        None  # or along this share of them, smallest eigenvalues first; both None: all
    )
    memory: bool = False  # preserve the keys of all earlier edits of the sequence (K_p K_p^T)
    beta: float | None = 1.0  # weight of those keys; None: infinite, later edits leave their outputs alone
    memory_keys: Literal["solved", "recomputed"] = (
        "solved"  # as they were written; or as they are once all layers are
    )
    spread: Literal["even", "sqrt", "last"] = (
        "even"  # a layer's share of the residual: 1 / layers left, 1 / their root, or all of it at the last
    )
    values_at: Literal["last", "each"] = (
        "last"  # one value at the last layer, or one at each for itself (BLUE)
    )
    anchor: float | None = None  # NAS: norm that every value gets; 0: the first batch's mean; None: its own
    values: ValueConfig = field(default_factory=ValueConfig)

    @property
    def projected(self) -> bool:
        """Whether updates are confined to a null space."""
        return self.null_threshold is not None or self.null_fraction is not None
