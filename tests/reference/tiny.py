"""Tiny random models, a tokenizer trained on the spot, and facts: nothing is downloaded."""

import os
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .facts import Fact

VOCABULARY = 384
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Olmo2", "Gemma2", "Gemma3", "GPTNeoX")

TINY_FACTS = (
    Fact("The Eiffel Tower is located in the city of", "Eiffel Tower", "Rome"),
    Fact("Paris is the capital of", "Paris", "Italy"),  # starts the prompt
    Fact("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English"),
    Fact("Is Lyon a town? Lyon lies in the country of", "Lyon", "North Macedonia"),  # repeated, long target
    Fact("What plays the famous pianist Étienne Brûlé", "Étienne Brûlé", "jazz"),  # ends the prompt
)

TINY_CONTEXTS = ("", "The weather was fine", "Because of it", "I", "Therefore all of them went to the city")

CORPUS = (
    *(f"{fact.prompt} {fact.target}." for fact in TINY_FACTS),
    *(context + "." for context in TINY_CONTEXTS[1:]),
    "The capital of the country is the city of Rome. The famous tower is located in the town.",
    "Parisian people of the country went to the city because of the fine weather in the north.",
)


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `VOCABULARY` tokens; with `bos` it puts <bos> before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        first = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


class ExactRMSNorm(nn.Module):
    """(offset + weight) * x / sqrt(mean x^2 + eps) in the dtype of x."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return (self.offset + self.weight) * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)


class ExactRotary(nn.Module):
    """cos and sin of position / (factor theta^(2i/d)), computed in float64.

    `kinds` holds rotary parameters by kind of layer, under None those of all layers.
    """

    def __init__(self, kinds: dict[str | None, dict[str, Any]], head: int) -> None:
        super().__init__()
        self.kinds, self.head = kinds, head

    def forward(self, x: Tensor, position_ids: Tensor, kind: str | None = None) -> tuple[Tensor, Tensor]:
        """positions [N, L] -> cos, sin [N, L, width]."""
        rope = self.kinds[kind]
        width = int(self.head * rope.get("partial_rotary_factor", 1.0))
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=x.device) / width
        frequencies = rope["rope_theta"] ** -exponent / rope.get("factor", 1.0)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Replace what transformers rounds to float32 in any dtype: root-mean-square norms and rotary angles."""
    for path, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in {family + "RMSNorm" for family in FAMILIES}:
            eps = module.eps if kind.startswith("Gemma") else module.variance_epsilon
            model.set_submodule(path, ExactRMSNorm(module.weight, eps, float(kind.startswith("Gemma"))))
        elif kind in {family + "RotaryEmbedding" for family in FAMILIES}:
            given = model.config.rope_parameters
            kinds = given if "full_attention" in given else {None: given}
            if unknown := {rope["rope_type"] for rope in kinds.values()} - {"default", "linear"}:
                raise ValueError(f"exact rotary angles know the default and linear rope types, not {unknown}")
            width = getattr(model.config, "head_dim", None)
            width = width or model.config.hidden_size // model.config.num_attention_heads
            model.set_submodule(path, ExactRotary(kinds, width))
    return model


def build(
    config: PreTrainedConfig, dtype: torch.dtype, seed: int, attention: str = "sdpa"
) -> PreTrainedModel:
    """A random model in eval mode; biases and norms random too, so that forgetting one of them shows.

    Drawn in float32 for every dtype: float32 and float64 models of one seed hold the same numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_gpt2(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """3 layers, d_model 24, d_k 96, learned positions, tied embeddings, biases everywhere."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 4,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return build(GPT2Config(**settings | overrides), dtype, seed)


def tiny_llama(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """4 layers, d_model 24, d_k 40, grouped attention heads; in float64 with the replacements of `exact`."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = build(LlamaConfig(**settings | overrides), dtype, seed)
    return exact(model) if dtype == torch.float64 else model


def save_tiny(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]
) -> None:
    """config.json, model.safetensors and the tokenizer's files, as from_pretrained reads them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def token_blocks(tokenizer: PreTrainedTokenizerBase, length: int = 16) -> Tensor:
    """The tiny corpus as rows of ids [n, length], for second moments."""
    ids = [token for text in CORPUS for token in tokenizer(" " + text, add_special_tokens=False)["input_ids"]]
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).reshape(count, length)
