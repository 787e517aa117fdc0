"""What a model can still do: multiple-choice questions, answered by likelihood and by generation.

The F1 is the weighted one: of each answer, weighted by how often it is the right one. An answer that is none of the
options is wrong, and counted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.evaluation.edits import branch_mask
from jaxedit.models.attention import Memory
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.types import Params, Questions, Quiz

INVALID = -1


class Answers(NamedTuple):
    """What a model answers to n questions of at most O options."""

    log_p: Float[np.ndarray, "n O"]  # of all tokens of each option after the prompt; -inf where there is none
    greedy: Int[np.ndarray, "n"]  # the option that greedy decoding writes, or INVALID


class Score(NamedTuple):
    """How good answers are."""

    accuracy: float
    f1: float
    invalid: float  # share of questions without a valid answer


class Ability(NamedTuple):
    """Scores of a quiz, the likeliest option taken, and what greedy decoding writes."""

    likelihood: Score
    generation: Score
    asked: int  # questions answered
    left_out: int  # questions too long for the model


def ability(model: Model, params: Params | dict[str, Array], quiz: Quiz) -> Ability:
    """The scores of any parameters of a model on a quiz."""
    found, gold = answers(model, params, quiz), np.asarray(quiz.gold)
    return Ability(score(likeliest(found), gold), score(found.greedy, gold), len(gold), quiz.left_out)


def answers(model: Model, params: Params | dict[str, Array], quiz: Quiz) -> Answers:
    """One forward pass over what the prompts share, and one over the rest of each batch."""
    memory = read_prefix(model, params, quiz.prefix, quiz.prefix_mask) if len(quiz.prefix) else None
    read = [jax.device_get(read_questions(model, params, memory, quiz.prefix_mask, x)) for x in quiz.batches]
    item = np.concatenate([np.asarray(batch.item) for batch in quiz.batches])
    order = np.argsort(item, kind="stable")[(item < 0).sum() :]
    log_p, greedy = (np.concatenate(parts)[order] for parts in zip(*read, strict=True))
    return Answers(log_p, greedy)


@jax.jit
def read_prefix(
    model: Model, params: Params | dict[str, Array], prefix: Int[Array, "P"], mask: Bool[Array, "P"]
) -> dict[int, Memory]:
    """Each layer's attention keys and values of the tokens that all prompts begin with."""
    decoder, valid = model.bind(params), mask[None]
    at = positions(valid)
    _, _, memory = decoder.run(
        decoder.embed(prefix[None], at),
        range(model.config.n_layers),
        position=at,
        mask=causal_mask(valid),
        keep_memory=True,
    )
    return memory


@jax.jit
def read_questions(
    model: Model,
    params: Params | dict[str, Array],
    memory: dict[int, Memory] | None,
    prefix_mask: Bool[Array, "P"],
    questions: Questions,
) -> tuple[Float[Array, "N O"], Int[Array, "N"]]:
    """The fields of `Answers` for one batch.

    What greedy decoding writes begins with an option where each of the option's tokens is the arg-max after those
    before it, so that nothing need be decoded; of several such options the longest is the answer.
    """
    decoder, target, mask = model.bind(params), questions.target, questions.target_mask
    n, o, t = target.shape
    earlier = jnp.broadcast_to(prefix_mask, (*questions.tokens.shape, len(prefix_mask)))
    h, _, _ = decoder.run(
        decoder.embed(questions.tokens, questions.position),
        range(model.config.n_layers),
        position=questions.position,
        mask=jnp.concatenate([earlier, branch_mask(questions.branch)], axis=-1),
        memory=jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), memory),
    )

    def after(at: Int[Array, "N M"]) -> Float[Array, "N M V"]:
        return jax.nn.log_softmax(decoder.logits(jnp.take_along_axis(h, at[..., None], axis=1)))

    end = after(questions.predict_at[:, 0, :1])  # all options follow the same token
    further = after(questions.predict_at[:, :, 1:].reshape(n, o * (t - 1)))
    further = further.reshape(n, o, t - 1, further.shape[-1])
    log_p = jnp.concatenate(
        [
            jnp.take_along_axis(end[:, 0], target[:, :, 0], axis=-1)[..., None],
            jnp.take_along_axis(further, target[:, :, 1:, None], axis=-1)[..., 0],
        ],
        axis=-1,
    )
    best = jnp.concatenate(
        [jnp.broadcast_to(end.argmax(axis=-1)[..., None], (n, o, 1)), further.argmax(axis=-1)], axis=-1
    )
    there = mask.any(axis=-1)
    total = jnp.where(there, jnp.where(mask, log_p, 0.0).sum(axis=-1), -jnp.inf)
    written = ((best == target) | ~mask).all(axis=-1) & there & ~jnp.isnan(total)
    longest = jnp.where(written, mask.sum(axis=-1), 0).argmax(axis=-1)
    return total, jnp.where(written.any(axis=-1), longest, INVALID)


def likeliest(found: Answers) -> Int[np.ndarray, "n"]:
    """The option of the highest log-probability; INVALID where one of them is not a number."""
    return np.where(np.isnan(found.log_p).any(axis=1), INVALID, found.log_p.argmax(axis=1))


def score(answer: Int[np.ndarray, "n"], gold: Int[np.ndarray, "n"]) -> Score:
    """Accuracy, weighted F1 and share of invalid answers."""
    f1 = 0.0
    for option in np.unique(gold):
        given, right = answer == option, gold == option
        f1 += right.mean() * 2 * (given & right).sum() / (given.sum() + right.sum())
    return Score(float((answer == gold).mean()), float(f1), float((answer == INVALID).mean()))
