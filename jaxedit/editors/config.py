"""The settings of locate-and-edit methods; each method is a choice among these."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxedit.models.config import DecoderConfig
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
    values_at: Literal["last", "each", "shared"] = (
        "last"  # one value at the last layer; one at each for itself (BLUE), or of which it writes its share
    )
    anchor: float | None = None  # NAS: norm that every value gets; 0: the first batch's mean; None: its own
    values: ValueConfig = field(default_factory=ValueConfig)

    def fitted(self, model: DecoderConfig) -> "LocateConfig":
        """The same method on a model with a norm behind the MLP; itself on every other.

        There a change of the matrix adds something else to the residual stream than to the MLP's output, so that
        a value of the block cannot be written, nor one residual be spread over several layers. Values are what
        the down-projection gives, and each layer of a span has its own, optimised once the layers before it are
        written. Of what is missing there a layer writes as much as it would of the one residual.
        """
        if not model.post_norm:
            return self
        site = "mlp" if self.values.site == "block" else self.values.site
        values_at = "shared" if self.values_at == "last" else self.values_at
        return replace(self, values=replace(self.values, site=site), values_at=values_at)

    @property
    def projected(self) -> bool:
        """Whether updates are confined to a null space."""
        return self.null_threshold is not None or self.null_fraction is not None
