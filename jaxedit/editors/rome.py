"""ROME (Meng et al. 2022, arXiv 2202.05262) and r-ROME (Gupta et al. 2024, arXiv 2403.07175)."""

from dataclasses import replace

from jaxedit.editors.locate import LocateConfig
from jaxedit.values import ValueConfig


def rome_config(layer: int) -> LocateConfig:
    """Rank-one model editing: the direction from the mean key, the constraint at the bare prompt's key.

    That asymmetry is what makes single edits able to disable a model. Batches satisfy all constraints
    jointly; facts at one key, which cannot all be satisfied, get the mean of what they want (least squares).
    Values of GPT2-XL; 21 contexts (the bare prompt, ten prefixes of 5 tokens, ten of 10).
    """
    values = ValueConfig(site="mlp", learning_rate=0.5, steps=20, weight_decay=0.5, clamp=4.0, kl=0.0625)
    return LocateConfig(layers=(layer,), lam=1.0, ridge=0.0, key_mean="plain", query="bare", values=values)


def r_rome_config(layer: int) -> LocateConfig:
    """ROME with the mean key and the mean output everywhere; EMMET with one fact and eps 0."""
    return replace(rome_config(layer), query="mean")
