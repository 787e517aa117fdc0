"""What a run says of its updates in metrics.jsonl, and of itself in summary.json."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.data.facts import Fact
from jaxedit.data.probes import encode_probes
from jaxedit.evaluation.edits import agreement, answer_all, summarise
from jaxedit.models.model import join
from jaxedit.pipeline.prepare import Prepared, Report
from jaxedit.trajectory.guard import reasons
from jaxedit.trajectory.run import Step, matrix_norms
from jaxedit.types import Params


def metric_lines(steps: Step, first: int, batches: Sequence[Sequence[Fact]]) -> Iterator[str]:
    """One JSON object for every update of a chunk; per-fact figures are lists in the order of `facts`."""
    for offset, batch in enumerate(batches):
        one = jax.tree.map(lambda x: np.asarray(x)[offset], steps._replace(factors={}))  # noqa: B023
        facts = len(batch)
        line = {
            "update": first + offset,
            "facts": [fact.id for fact in batch],
            "applied": bool(one.applied),
            "refused": reasons(int(one.refused)),
            "norm": plain(one.norm, facts),
            "delta_norm": plain(one.delta_norm, facts),
            "metrics": plain(one.metrics, facts),
            "scores": plain(one.observed, facts),
        }
        yield json.dumps(line, allow_nan=True) + "\n"


def plain(values: dict[str, np.ndarray], facts: int) -> dict[str, Any]:
    """Arrays as JSON numbers and lists, padding facts cut off, `null` for NaN.

    Without facts, as of a batch of text, nothing is padding.
    """

    def convert(x: np.ndarray) -> Any:
        x = np.asarray(x)
        x = x[..., : facts or None] if x.ndim else x
        if x.dtype.kind != "f":
            return x.tolist()
        plain_numbers = x.astype(object)
        plain_numbers[np.isnan(x)] = None
        return plain_numbers.tolist()

    return {name: convert(value) for name, value in values.items()}


def summary(prepared: Prepared, final: Params, report: Report) -> dict[str, Any]:
    """Scores of all edits on the final model and on the one before, and norms of matrices before and after.

    On the final model also how far both say the same in the neighbourhood (`agreement`). Scores are means over facts;
    `by_fact` has each fact's own, in the order of the facts. There are none where there are no facts.
    """
    checkpoint = prepared.checkpoint
    limit = checkpoint.model.config.max_positions
    result: dict[str, Any] = {"edits": len(prepared.facts), "unedited": {}, "final": {}}
    if prepared.facts:
        probes = encode_probes(prepared.facts, checkpoint.tokenizer, max_length=limit)
        report("scoring all edits", 0, 2)
        before, said_before = answer_all(checkpoint.model, checkpoint.params, probes)
        report("scoring all edits", 1, 2)
        after, said_after = answer_all(checkpoint.model, join(final), probes)
        report("scoring all edits", 2, 2)
        after["neighborhood_agreement"] = agreement(said_before, said_after, probes)
        each = {"unedited": before, "final": after}
        result |= {model: summarise(scores) for model, scores in each.items()}
        result["by_fact"] = {model: plain(scores, len(prepared.facts)) for model, scores in each.items()}
    norms = matrix_norms(checkpoint.params, final.edited)
    result["unedited_norm"] = {path: float(norm) for path, norm in norms.items()}
    result["final_norm"] = {path: float(jnp.linalg.norm(w)) for path, w in final.edited.items()}
    return result
