"""Scores of edits: efficacy, generalisation, specificity, by likelihood and by arg-max.

Meng et al. 2022 (arXiv 2202.05262), section 3.3. A tie counts as failure. Means are within a case first, then
over cases; the score S is the harmonic mean of ES, PS and NS.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.decoder import Decoder
from jaxedit.models.model import Model
from jaxedit.models.packing import Size, pack, packing_of, unpack
from jaxedit.models.rows import run_rows
from jaxedit.processes import to_host
from jaxedit.types import NEIGHBORHOOD, PARAPHRASE, REWRITE, Params, Probes

KINDS = {"rewrite": REWRITE, "paraphrase": PARAPHRASE, "neighborhood": NEIGHBORHOOD}


class Readings(NamedTuple):
    """What a model says on probe rows, for both targets (0 new, 1 true)."""

    nll: Float[Array, "B N 2"]  # mean over target tokens of -log p, teacher forced
    exact: Bool[Array, "B N 2"]  # every target token is the arg-max under teacher forcing
    tokens: Float[Array, "B N 2"]  # the share of them that are
    said: Int[Array, "B N 2 T"]  # the arg-max in place of each of them


def read(
    model: Model, params: Params | dict[str, Array], probes: Probes, room: Size | None = None
) -> Readings:
    """One forward pass over all probe rows of a batch of facts; the vocabulary only where targets are predicted.

    With `room` (see `room_of`) real tokens and predictions are packed, and padding costs nothing but in attention.
    """
    decoder = model.bind(params)
    mask = probes.target_mask
    h = _predicting(decoder, probes, room)
    if room is None:
        nll, said = _answers(decoder, h, probes.target)
    else:
        reads = packing_of(mask, room.reads)
        answers = _answers(decoder, pack(h, reads), pack(probes.target[..., None], reads)[:, 0])
        nll, said = (unpack(x[:, None], reads)[..., 0] for x in answers)
    hit = said == probes.target
    count = jnp.maximum(mask.sum(axis=-1), 1)
    nll = jnp.where(mask, nll, 0.0).sum(axis=-1) / count
    return Readings(nll, (hit | ~mask).all(axis=-1), (hit & mask).sum(axis=-1) / count, said)


def _predicting(decoder: Decoder, probes: Probes, room: Size | None) -> Float[Array, "B N 2 T d_model"]:
    """Hidden states after the last layer where targets are predicted."""
    tokens, position, branch = (x.reshape(-1, x.shape[-1]) for x in probes[:3])
    h = run_rows(
        decoder,
        decoder.embed(tokens, position),
        range(decoder.config.n_layers),
        position=position,
        mask=branch_mask(branch),
        real=real_tokens(probes).reshape(tokens.shape),
        places=None if room is None else room.tokens,
    )
    at = probes.predict_at.reshape(len(tokens), -1, 1)
    return jnp.take_along_axis(h, at, axis=1).reshape(*probes.predict_at.shape, -1)


def _answers(
    decoder: Decoder, h: Float[Array, "*N d_model"], target: Int[Array, "*N"]
) -> tuple[Float[Array, "*N"], Int[Array, "*N"]]:
    """-log p of every target token, and the arg-max in its place."""
    log_p = jax.nn.log_softmax(decoder.logits(h))
    nll = -jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    return nll, log_p.argmax(axis=-1)


def room_of(probes: Probes, batches: Sequence[slice]) -> Size:
    """What `read` needs for any of some batches of these facts, which must be on the host.

    In sixteenths of a batch's arrays, so that other facts find the program compiled.
    """
    return Size(
        fullest(np.asarray(real_tokens(probes)), batches), fullest(np.asarray(probes.target_mask), batches)
    )


def fullest(real: Bool[np.ndarray, "B *row"], batches: Sequence[slice]) -> int:
    """The most that are real in any of the batches, rounded up to sixteenths of a batch."""
    sixteenths = max(math.ceil(16 * real[batch].mean()) for batch in batches)
    return -(-sixteenths * max(real[batch].size for batch in batches) // 16)


def real_tokens(probes: Probes) -> Bool[Array, "B N L"]:
    """Which tokens are no padding."""
    return (probes.branch >= 0) & (probes.kind >= 0)[..., None]


def branch_mask(branch: Array) -> Bool[Array, "M L L"]:
    """A token of a packed row sees the prompt and its own branch, up to itself."""
    query, key = branch[:, :, None], branch[:, None, :]
    length = branch.shape[1]
    return ((key == 0) | (key == query)) & (key >= 0) & jnp.tri(length, dtype=bool)


def score(readings: Readings, kind: Array) -> dict[str, Float[Array, "B"]]:
    """Per fact: success, magnitude, accuracy, tokens on rewrite, paraphrase and neighbourhood rows; NaN without rows.

    `*_success` is 1[NLL(true) > NLL(new)], on the neighbourhood 1[NLL(true) < NLL(new)]; `*_magnitude` is
    exp(-NLL(new)) - exp(-NLL(true)), on the neighbourhood its negative; `*_accuracy` is the share of rows whose
    wanted target (new; true on the neighbourhood) is the arg-max at all its tokens, `*_tokens` the share of its
    tokens that are, as zsRE is scored (De Cao et al. 2021, arXiv 2104.08164; Mitchell et al. 2022).
    """
    new, true = readings.nll[..., 0], readings.nll[..., 1]
    gain = jnp.exp(-new) - jnp.exp(-true)
    result = {}
    for name, index in KINDS.items():
        keep = name == "neighborhood"
        rows = kind == index
        values = {
            "success": (true < new) if keep else (true > new),
            "magnitude": -gain if keep else gain,
            "accuracy": readings.exact[..., int(keep)],
            "tokens": readings.tokens[..., int(keep)],
        }
        for what, value in values.items():
            result[f"{name}_{what}"] = _mean_of_rows(value, rows, jnp)
    return result


def _mean_of_rows(value: Any, rows: Any, xp: ModuleType) -> Any:
    """Per fact the mean over its rows of a kind, NaN without any: [B N] to [B], in NumPy or JAX."""
    count = rows.sum(axis=-1)
    mean = xp.where(rows, value, 0).sum(axis=-1) / xp.maximum(count, 1)
    return xp.where(count > 0, mean, xp.nan)


def agreement(
    before: Int[np.ndarray, "B N T"], after: Int[np.ndarray, "B N T"], probes: Probes
) -> Float[np.ndarray, "B"]:
    """Per fact: the share of the true answers' tokens in the neighbourhood where two models' arg-max is the same.

    `before` and `after` as `answer_all` gives them. Specificity as zsRE and KnowEdit have it, whatever the model's
    answer was (Mitchell et al. 2022, arXiv 2110.11309, drawdown; Yao et al. 2023, arXiv 2305.13172, locality). Mean
    within a row, then over rows; NaN without rows.
    """
    mask, rows = np.asarray(probes.target_mask)[:, :, 1], np.asarray(probes.kind) == NEIGHBORHOOD
    share = ((before == after) & mask).sum(axis=-1) / np.maximum(mask.sum(axis=-1), 1)
    return _mean_of_rows(share, rows, np)


class ProbeAnswers(NamedTuple):
    """What B facts' probe rows come to."""

    scores: dict[str, Float[Array, "B"]]  # as `probe_scores` has them
    said: Int[Array, "B N T"]  # the arg-max in place of each token of the true answer


def probe_answers(
    model: Model, params: Params | dict[str, Array], probes: Probes, room: Size | None = None
) -> ProbeAnswers:
    """One forward pass; `room` as in `read`."""
    readings = read(model, params, probes, room)
    rewrite = probes.kind == REWRITE
    knows = (readings.exact[..., 1] & rewrite).any(axis=-1)
    return ProbeAnswers(
        score(readings, probes.kind) | {"knows": knows.astype(jnp.float32)}, readings.said[:, :, 1]
    )


def probe_scores(
    model: Model, params: Params | dict[str, Array], probes: Probes, room: Size | None = None
) -> dict[str, Array]:
    """`score` of `read`, and whether the model gives the true object on the bare prompt ("knows")."""
    return probe_answers(model, params, probes, room).scores


answers_together = jax.jit(probe_answers, static_argnames="room")
"""`probe_answers`, compiled once for all parameters and batches of one shape and room."""


def score_all(
    model: Model, params: Params | dict[str, Array], probes: Probes, batch: int = 16
) -> dict[str, Float[np.ndarray, "B"]]:
    """`probe_scores` of any number of facts, in batches of one shape."""
    return answer_all(model, params, probes, batch)[0]


def answer_all(
    model: Model, params: Params | dict[str, Array], probes: Probes, batch: int = 16
) -> tuple[dict[str, Float[np.ndarray, "B"]], Int[np.ndarray, "B N T"]]:
    """`probe_answers` of any number of facts, in batches of one shape, on the host."""
    count = len(probes.kind)
    # The last batch is filled up with the last fact.
    filled = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], -count % batch, axis=0)]), probes)
    batches = [slice(start, start + batch) for start in range(0, count, batch)]
    room = room_of(filled, batches)
    parts = [
        to_host(answers_together(model, params, jax.tree.map(lambda x: x[rows], filled), room))  # noqa: B023
        for rows in batches
    ]
    scores, said = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
    return scores, said


def summarise(scores: dict[str, Float[np.ndarray, "B"]]) -> dict[str, float]:
    """Means over facts as ES, PS, NS, S; EM, PM, NM; EA, PA, NA (accuracies); ET, PT, NT (of tokens); NG (agreement).

    NaN where nothing was scored, no name where nothing was asked.
    """
    letters = {"rewrite": "E", "paraphrase": "P", "neighborhood": "N"}
    ends = {"success": "S", "magnitude": "M", "accuracy": "A", "tokens": "T", "agreement": "G"}
    result = {}
    for what, end in ends.items():
        for name, letter in letters.items():
            if f"{name}_{what}" not in scores:
                continue
            values = np.asarray(scores[f"{name}_{what}"], np.float64)
            values = values[~np.isnan(values)]
            result[letter + end] = float(values.mean()) if len(values) else float("nan")
    success = [result[k] for k in ("ES", "PS", "NS") if not np.isnan(result[k])]
    harmonic = len(success) / sum(1 / x for x in success) if success and min(success) > 0 else 0.0
    return result | {"S": harmonic if success else float("nan")}
