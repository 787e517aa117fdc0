"""A model as EleutherAI's lm-evaluation-harness asks one: `pip install jaxedit[harness]`.

lm_eval.simple_evaluate(served("runs/hundred", step=40), tasks=[...])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxedit.data.shapes import ladder
from jaxedit.data.tokens import leading_ids
from jaxedit.errors import ConfigError
from jaxedit.evaluation.continuations import continuations
from jaxedit.evaluation.generation import sample
from jaxedit.models.model import Model
from jaxedit.pipeline import model_at
from jaxedit.types import Params

GENERATED = 256  # tokens, where a task does not say
SMALLEST_PROMPT = 32


def served(path: str | Path, step: int | None = None, batch: int = 16) -> "HarnessModel":
    """The model of a run after a step, by default as the run left it."""
    checkpoint = model_at(path, step)
    return HarnessModel(checkpoint.model, checkpoint.params, checkpoint.tokenizer, batch)


class HarnessModel(TemplateLM):
    """Any parameters of a model, read `batch` requests at a time.

    Longer contexts than `max_length` tokens (by default what the model takes) lose their beginning. Generation is
    greedy; a task that samples is refused with a ConfigError, and so is one that asks for so many tokens that a
    prompt would be left with fewer than `SMALLEST_PROMPT`.
    """

    def __init__(
        self,
        model: Model,
        params: Params | dict[str, Array],
        tokenizer: Any,
        batch: int = 16,
        max_length: int | None = None,
    ):
        super().__init__()
        limit = model.config.max_positions
        length = limit if max_length is None else max_length
        if batch < 1 or not 1 < length <= limit:
            raise ConfigError(
                f"batch is {batch} and max_length {max_length}; need batch >= 1 and max_length of 2 to {limit}"
            )
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.batch_size, self.max_length = batch, length
        self._lead = leading_ids(tokenizer)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, behind the tokenizer's leading special tokens unless told otherwise."""
        ids = list(self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"])
        return (
            ids
            if add_special_tokens is False or ids[: len(self._lead)] == self._lead
            else [*self._lead, *ids]
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the tokenizer writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        answers = self._read(pairs)
        for (request, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answers

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
        """As much of the end as the model can read; the last token is only predicted."""
        continuation = list(continuation)[-self.max_length :]
        return list(context)[-(self.max_length + 1 - len(continuation)) :], continuation

    def _read(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found = continuations(self.model, self.params, pairs, self.batch_size)
        return list(zip(found.log_p.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in windows of `max_length` tokens."""
        windows: list[list[tuple[list[int], list[int]]]] = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows.append([make_disjoint_window(part) for part in parts])
        read = iter(self._read([pair for parts in windows for pair in parts]))
        totals = [sum(next(read)[0] for _ in parts) for parts in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each up to the first of its stops, the end of the text, or `max_gen_toks` tokens."""
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        steps = [
            self._steps(request.args[1], len(ids)) for request, ids in zip(requests, prompts, strict=True)
        ]
        result = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (steps[i], -len(prompts[i])))
        while order:
            chosen = [i for i in order[: self.batch_size] if steps[i] == steps[order[0]]]
            order = order[len(chosen) :]
            texts = self._generate([prompts[i] for i in chosen], steps[chosen[0]])
            for i, text in zip(chosen, texts, strict=True):
                result[i] = _before(text, requests[i].args[1].get("until") or ())
                self.cache_hook.add_partial("generate_until", requests[i].args, result[i])
        return result

    def _steps(self, options: dict[str, Any], prompt: int) -> int:
        """How many tokens to write after `prompt` of them; where the task does not say, what leaves these room."""
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise ConfigError(f"generation is greedy here: set do_sample to false, found {options}")
        asked = options.get("max_gen_toks")
        steps = min(GENERATED, max(self.max_length - SMALLEST_PROMPT, 1)) if asked is None else int(asked)
        if steps < 1 or self.max_length - steps < min(prompt, SMALLEST_PROMPT):
            raise ConfigError(
                f"max_gen_toks is {steps}, max_length {self.max_length}: need max_gen_toks >= 1, and room for "
                f"{min(prompt, SMALLEST_PROMPT)} tokens of a prompt of {prompt}"
            )
        return steps

    def _generate(self, prompts: Sequence[Sequence[int]], steps: int) -> list[str]:
        kept = [list(prompt)[-(self.max_length - steps) :] for prompt in prompts]
        width = ladder(max(map(len, kept)), SMALLEST_PROMPT)
        tokens, valid = np.zeros((self.batch_size, width), np.int32), np.zeros((self.batch_size, width), bool)
        valid[:, -1] = True  # also on rows of padding, which so keep one token
        for i, ids in enumerate(kept):
            tokens[i, width - len(ids) :], valid[i, width - len(ids) :] = ids, True
        written = sample(self.model, self.params, tokens, valid, steps, jax.random.key(0))
        rows = np.asarray(written)[: len(kept)].tolist()
        end = self.eot_token_id
        return [
            self.tokenizer.decode(row[: row.index(end)] if end in row else row, skip_special_tokens=True)
            for row in rows
        ]


def _before(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stops."""
    stops = [stops] if isinstance(stops, str) else stops
    return min((text.split(stop, 1)[0] for stop in stops if stop), key=len, default=text)
