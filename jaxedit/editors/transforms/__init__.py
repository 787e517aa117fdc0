"""Transforms of updates in the manner of optax: `chain(editor, rect(0.4), clip_norm(1.0))` is an editor."""

from jaxedit.editors.transforms.chain import Chained, chain
from jaxedit.editors.transforms.compensate import compensate
from jaxedit.editors.transforms.limits import clip_norm, scale, spectral_cap
from jaxedit.editors.transforms.locks import norm_lock, spectrum_lock
from jaxedit.editors.transforms.masks import null_space, revive, sphere
from jaxedit.editors.transforms.mose import mose
from jaxedit.editors.transforms.prune import prune, restrained
from jaxedit.editors.transforms.rect import rect
from jaxedit.editors.transforms.table import TRANSFORMS, build_transforms, read_transform
from jaxedit.editors.transforms.transform import Transform, compose, identity

__all__ = [
    "TRANSFORMS",
    "Chained",
    "Transform",
    "build_transforms",
    "chain",
    "clip_norm",
    "compensate",
    "compose",
    "identity",
    "mose",
    "norm_lock",
    "null_space",
    "prune",
    "read_transform",
    "rect",
    "restrained",
    "revive",
    "scale",
    "spectral_cap",
    "spectrum_lock",
    "sphere",
]
