"""Editors' settings for the small models, and those that experiments compare.

On a larger model every editor has its preset. The small models are 4 layers deep and attend to the subject early:
settings were searched on the Llama-like one, over 100 to 300 edits, for an ES right after the edit of 90; those
of `evoedit` and `d4s` over 1,000, where no ridge tried brought them beyond 83.
"""

import json
from pathlib import Path
from typing import NamedTuple

from experiments.common import Arm, Study
from jaxedit.editors import METHODS, Settings

FIRST = (0,)
SMALL: dict[str, Settings] = {
    "rome": Settings(layers=FIRST),
    "r-rome": Settings(layers=FIRST),
    "emmet": Settings(layers=FIRST, clamp=4.0),
    **{name: Settings(layers=FIRST, clamp=4.0, lam=3000.0) for name in ("memit", "pmet")},
    "memit-history": Settings(layers=FIRST, clamp=4.0, lam=1000.0),
    **{name: Settings(layers=FIRST, clamp=4.0) for name in ("encore", "betaedit", "langedit")},
    **{
        name: Settings(layers=FIRST, clamp=4.0, lam_n=300.0, null_fraction=0.95)
        for name in ("alphaedit", "nas")
    },
    "evoedit": Settings(layers=FIRST, clamp=4.0, lam_n=10.0, null_fraction=0.95),
    "d4s": Settings(layers=FIRST, clamp=4.0, lam=1000.0),
    "lyaplock": Settings(layers=FIRST, clamp=4.0, allowance=6000.0),
    "memit-blue": Settings(layers=(0, 1), clamp=4.0, lam=3000.0),
    "ft": Settings(layers=FIRST),
    "ft-l": Settings(layers=FIRST, learning_rate=1e-3, bound=0.02),
    "lora": Settings(layers=FIRST, learning_rate=1e-3),
    "lora-sequence": Settings(layers=FIRST, learning_rate=1e-3),
    "full-ft": Settings(learning_rate=1e-4),
    "pretrain": Settings(learning_rate=1e-4),
    **{name: Settings(layers=(1, 2, 3), rank=256) for name in ("mend", "malmen")},
    "ultraedit": Settings(layers=(2, 3), learning_rate=3e-4),
    "stableedit": Settings(layers=(2, 3), learning_rate=3e-4),
}


class Place(NamedTuple):
    """What another architecture needs to be edited as the Llama-like model is."""

    layer: int
    keys: float  # mean squared length of this layer's keys over the other's first layer: what `lam_n` is added to


PLACES = {
    "gpt2": Place(0, 0.2),
    "gptj": Place(1, 0.068),
    "gpt_neox": Place(1, 0.083),
    "qwen3": Place(0, 1.04),
    "gemma2": Place(0, 1.44),
}
"""By family. Where attention and MLP run side by side, the first MLP sees its own token alone, not the subject."""
MITIGATIONS = (
    "rect:0.4",
    "prune",
    "revive:0.2",
    "sphere:0.8,0.5",
    "spectral-cap",
    "norm-lock",
    "spectrum-lock",
)
"""Transforms of E7, on top of MEMIT."""
NORM_AWARE = ("memit", "memit-history", "alphaedit", "encore", "evoedit", "lyaplock", "d4s", "nas")


def arm(study: Study, editor: str, *transforms: str, batch: int = 1, **departures: object) -> Arm:
    """The editor with what its settings are for this model, or as its name goes on: "memit:lam=10,clamp=2".

    A small model is one with the record of its training beside it.
    """
    name, _, asked = editor.partition(":")
    given = SMALL.get(name, Settings()) if Path(f"{study.model}.json").exists() else Settings()
    fields = {field: value for field, value in vars(given).items() if value is not None}
    place = PLACES.get(Path(study.model).name)
    if place is not None and "lam_n" in fields:
        fields["lam_n"] = round(fields["lam_n"] * place.keys, 3)
    if place is not None and fields.get("layers") == FIRST:
        fields["layers"] = (place.layer,)
    pairs = [text.split("=") for text in asked.split(",") if text]
    own = {field: json.loads(value) for field, value in pairs}
    return Arm(name, Settings(**{**fields, **own, **departures}), transforms, batch, asked)


def editors_of_facts() -> tuple[str, ...]:
    """All that need neither a text nor a trained network."""
    return tuple(name for name, row in METHODS.items() if row.request == "facts" and not row.needs_net)
