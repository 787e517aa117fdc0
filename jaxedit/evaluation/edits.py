"""Scores of edits: efficacy, generalisation, specificity, by likelihood and by arg-max.

Meng et al. 2022 (arXiv 2202.05262), section 3.3. A tie counts as failure. Means are within a case first, then
over cases; the score S is the harmonic mean of ES, PS and NS.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxedit.models.model import Model
from jaxedit.processes import to_host
from jaxedit.types import NEIGHBORHOOD, PARAPHRASE, REWRITE, Params, Probes

KINDS = {"rewrite": REWRITE, "paraphrase": PARAPHRASE, "neighborhood": NEIGHBORHOOD}


class Readings(NamedTuple):
    """What a model says on probe rows, for both targets (0 new, 1 true)."""

    nll: Float[Array, "B N 2"]  # mean over target tokens of -log p, teacher forced
    exact: Bool[Array, "B N 2"]  # every target token is the arg-max under teacher forcing


def read(model: Model, params: Params | dict[str, Array], probes: Probes) -> Readings:
    """One forward pass over all probe rows of a batch of facts; the vocabulary only where targets are predicted."""
    length = probes.tokens.shape[-1]
    decoder = model.bind(params)
    tokens, position, branch = (x.reshape(-1, length) for x in probes[:3])
    h, _, _ = decoder.run(
        decoder.embed(tokens, position),
        range(model.config.n_layers),
        position=position,
        mask=branch_mask(branch),
    )
    at = probes.predict_at.reshape(tokens.shape[0], -1)
    log_p = jax.nn.log_softmax(decoder.logits(jnp.take_along_axis(h, at[..., None], axis=1)))
    target = probes.target.reshape(at.shape)
    nll = -jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    hit = log_p.argmax(axis=-1) == target
    mask = probes.target_mask
    count = jnp.maximum(mask.sum(axis=-1), 1)
    nll = jnp.where(mask, nll.reshape(mask.shape), 0.0).sum(axis=-1) / count
    return Readings(nll, (hit.reshape(mask.shape) | ~mask).all(axis=-1))


def branch_mask(branch: Array) -> Bool[Array, "M L L"]:
    """A token of a packed row sees the prompt and its own branch, up to itself."""
    query, key = branch[:, :, None], branch[:, None, :]
    length = branch.shape[1]
    return ((key == 0) | (key == query)) & (key >= 0) & jnp.tri(length, dtype=bool)


def score(readings: Readings, kind: Array) -> dict[str, Float[Array, "B"]]:
    """Per fact: success, magnitude and accuracy on rewrite, paraphrase and neighbourhood rows; NaN without rows.

    `*_success` is 1[NLL(true) > NLL(new)], on the neighbourhood 1[NLL(true) < NLL(new)]; `*_magnitude` is
    exp(-NLL(new)) - exp(-NLL(true)), on the neighbourhood its negative; `*_accuracy` is the share of rows whose
    wanted target (new; true on the neighbourhood) is the arg-max at all its tokens.
    """
    new, true = readings.nll[..., 0], readings.nll[..., 1]
    gain = jnp.exp(-new) - jnp.exp(-true)
    result = {}
    for name, index in KINDS.items():
        keep = name == "neighborhood"
        rows = kind == index
        count = rows.sum(axis=-1)
        values = {
            "success": (true < new) if keep else (true > new),
            "magnitude": -gain if keep else gain,
            "accuracy": readings.exact[..., 1] if keep else readings.exact[..., 0],
        }
        for what, value in values.items():
            mean = jnp.where(rows, value, 0).sum(axis=-1) / jnp.maximum(count, 1)
            result[f"{name}_{what}"] = jnp.where(count > 0, mean, jnp.nan)
    return result


def probe_scores(model: Model, params: Params | dict[str, Array], probes: Probes) -> dict[str, Array]:
    """`score` of `read`, and whether the model gives the true object on the bare prompt ("knows")."""
    readings = read(model, params, probes)
    rewrite = probes.kind == REWRITE
    knows = (readings.exact[..., 1] & rewrite).any(axis=-1)
    return score(readings, probes.kind) | {"knows": knows.astype(jnp.float32)}


scores_together = jax.jit(probe_scores)
"""`probe_scores`, compiled once for all parameters and batches of one shape."""


def score_all(
    model: Model, params: Params | dict[str, Array], probes: Probes, batch: int = 16
) -> dict[str, Float[np.ndarray, "B"]]:
    """`probe_scores` of any number of facts, in batches of one shape."""
    parts = []
    for start in range(0, len(probes.kind), batch):
        rows = jax.tree.map(lambda x: x[start : start + batch], probes)  # noqa: B023
        count = len(rows.kind)
        rows = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], batch - count, axis=0)]), rows)  # noqa: B023
        parts.append(jax.tree.map(lambda x: x[:count], to_host(scores_together(model, params, rows))))  # noqa: B023
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarise(scores: dict[str, Float[np.ndarray, "B"]]) -> dict[str, float]:
    """Means over facts as ES, PS, NS, S; EM, PM, NM; EA, PA, NA (accuracies). NaN where nothing was scored."""
    letters = {"rewrite": "E", "paraphrase": "P", "neighborhood": "N"}
    ends = {"success": "S", "magnitude": "M", "accuracy": "A"}
    result = {}
    for what, end in ends.items():
        for name, letter in letters.items():
            values = np.asarray(scores[f"{name}_{what}"], np.float64)
            values = values[~np.isnan(values)]
            result[letter + end] = float(values.mean()) if len(values) else float("nan")
    success = [result[k] for k in ("ES", "PS", "NS") if not np.isnan(result[k])]
    harmonic = len(success) / sum(1 / x for x in success) if success and min(success) > 0 else 0.0
    return result | {"S": harmonic if success else float("nan")}
