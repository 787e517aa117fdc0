"""Made-up run records."""

import numpy as np

from jaxedit.report.record import RunRecord

KINDS = {"rewrite": 0.95, "paraphrase": 0.85, "neighborhood": 0.8}


def record(
    name: str = "demo", layers: tuple[int, ...] = (1, 2), edits: int = 30, finished: bool = True
) -> RunRecord:
    """A run of single edits on a model of six layers whose norms grow by 1 % a layer."""
    rng = np.random.default_rng(0)
    unedited = {f"layers.{i}.mlp.{kind}.kernel": 10.0 + i for i in range(6) for kind in ("down", "up")}
    paths = [f"layers.{layer}.mlp.down.kernel" for layer in layers]
    scores = {
        f"{kind}_{what}": (rng.random(edits) < share).astype(float)
        for kind, share in KINDS.items()
        for what in ("success", "magnitude", "accuracy")
    }
    scores |= {f"{kind}_tokens": scores[f"{kind}_accuracy"] for kind in KINDS}
    means = {"ES": 0.9, "PS": 0.8, "NS": 0.7, "S": 0.79}
    return RunRecord(
        name=name,
        editor="memit",
        asked=30,
        edits=np.arange(1, edits + 1),
        norm={path: unedited[path] * np.linspace(1.0, 1.01, edits + 1)[1:] for path in paths},
        update={path: np.full(edits, 0.01 * unedited[path]) for path in paths},
        scores=scores,
        refused=0,
        unedited=means if finished else {},
        final=means if finished else {},
        unedited_norm=unedited if finished else {},
        final_norm={},
    )
