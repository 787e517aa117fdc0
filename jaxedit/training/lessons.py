"""What a hypernetwork learns from: facts to edit, and the prompts by which an edit is judged."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.data import Fact, encode_probes, encode_requests
from jaxedit.data.tokens import Tokenizer
from jaxedit.editors.features import Start
from jaxedit.errors import FactError
from jaxedit.evaluation.edits import branch_mask
from jaxedit.models.model import Model
from jaxedit.types import NEIGHBORHOOD, Params, Probes, Requests


class Hidden(NamedTuple):
    """The residual stream of F facts at the input of the first layer that is edited: no edit changes it."""

    requests: Float[Array, "F M d_model"]  # prompts with targets, as of `whole_rows`
    probes: Float[Array, "F N L d_model"]


class Lessons(NamedTuple):
    """F facts, the bare prompt alone as context."""

    requests: Requests
    probes: Probes  # prompt and paraphrases are to give the new target, the neighborhood is to stay as it was
    hidden: Hidden | None = None  # None: computed anew wherever it is needed


class Judgement(NamedTuple):
    """How a model after an edit does on its lessons."""

    edit: Float[Array, ""]  # mean NLL of the new target on prompt and paraphrases
    locality: Float[Array, ""]  # mean KL(unedited || edited) where the neighborhood's answers are predicted


def encode_lessons(facts: Sequence[Fact], tokenizer: Tokenizer, *, max_length: int) -> Lessons:
    """Numpy arrays. Raises FactError for facts that cannot be encoded, or none of which has a neighborhood."""
    if not any(fact.neighborhood for fact in facts):
        raise FactError(
            "no fact has neighborhood prompts, so nothing would hold the rest of the model in place"
        )
    return Lessons(
        encode_requests(facts, tokenizer, max_length=max_length),
        encode_probes(facts, tokenizer, max_length=max_length),
    )


def take(lessons: Lessons, facts: Int[Array | np.ndarray, "*n"]) -> Lessons:
    """A choice of facts, in this order; the index may have any number of axes."""
    return jax.tree.map(lambda x: x[facts], lessons)


def grouped(lessons: Lessons, size: int) -> Lessons:
    """All facts in groups [groups, size], the last one filled up with facts of weight 0."""
    facts = len(lessons.requests.weight)
    index = np.arange(-(-facts // size) * size).reshape(-1, size)
    groups = take(lessons, np.minimum(index, facts - 1))
    weight = groups.requests.weight * (index < facts)
    return groups._replace(requests=groups.requests._replace(weight=weight))


def predictions(
    model: Model, params: Params, probes: Probes, start: Start | None = None
) -> Float[Array, "B N 2 T V"]:
    """log p of every token where a target token is predicted, on all rows, for both targets."""
    length = probes.tokens.shape[-1]
    decoder = model.bind(params)
    tokens, position, branch = (x.reshape(-1, length) for x in probes[:3])
    begin = Start(0, decoder.embed(tokens, position)) if start is None else start
    rest = range(begin.layer, model.config.n_layers)
    h, _, _ = decoder.run(begin.hidden, rest, position=position, mask=branch_mask(branch))
    at = probes.predict_at.reshape(len(tokens), -1)
    log_p = jax.nn.log_softmax(decoder.logits(jnp.take_along_axis(h, at[..., None], axis=1)))
    return log_p.reshape(*probes.predict_at.shape, -1)


def judge(before: Float[Array, "B N 2 T V"], after: Float[Array, "B N 2 T V"], lessons: Lessons) -> Judgement:
    """Means over facts with weight, of a fact's rows, of a row's tokens; a fact without rows of a kind counts 0."""
    probes, weight = lessons.probes, lessons.requests.weight
    held = probes.kind == NEIGHBORHOOD
    asked = (probes.kind >= 0) & ~held
    nll = -jnp.take_along_axis(after[:, :, 0], probes.target[:, :, 0, :, None], axis=-1)[..., 0]
    divergence = jnp.sum(jnp.exp(before[:, :, 1]) * (before[:, :, 1] - after[:, :, 1]), axis=-1)
    return Judgement(
        _mean(_mean(_mean(nll, probes.target_mask[:, :, 0]), asked), weight),
        _mean(_mean(_mean(divergence, probes.target_mask[:, :, 1]), held), weight),
    )


def _mean(x: Float[Array, "*N T"], counted: Array) -> Float[Array, "*N"]:
    return jnp.sum(x * counted, axis=-1) / jnp.maximum(counted.sum(axis=-1), 1)
