"""Tiny random models of every family but GPT-2 and Llama, small enough that every option of theirs shows.

Windows are shorter than the texts, caps low, heads rotated in part, and local and global layers alternate.
"""

from typing import Any, NamedTuple

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from .tiny import VOCABULARY, build, exact

WINDOW = 12  # the rest of a prompt, from its subject on, is shorter
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = TOKENS | {
    "max_position_embeddings": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
}
GEMMA = LLAMA_LIKE | {
    "initializer_range": 0.1,
    "head_dim": 8,
    "query_pre_attn_scalar": 10,
    "sliding_window": WINDOW,
    "final_logit_softcapping": 3.0,
}
GEMMA_3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
}


class Recipe(NamedTuple):
    """A configuration, and how its attention is computed where it can be chosen."""

    config: type[PreTrainedConfig]
    settings: dict[str, Any]
    attention: str = "sdpa"  # "eager" rounds weights to float32 in any dtype


RECIPES = {
    "gptj": Recipe(
        GPTJConfig,
        TOKENS
        | {
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "rotary_dim": 4,
            "initializer_range": 0.15,
        },
        attention="eager",
    ),
    "gpt_neox": Recipe(
        GPTNeoXConfig,
        TOKENS
        | {
            "max_position_embeddings": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            "initializer_range": 0.15,
        },
    ),
    "opt": Recipe(
        OPTConfig,
        TOKENS
        | {
            "max_position_embeddings": 64,
            "hidden_size": 24,
            "ffn_dim": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "init_std": 0.15,
        },
    ),
    "mistral": Recipe(MistralConfig, LLAMA_LIKE | {"sliding_window": WINDOW}),
    "qwen2": Recipe(
        Qwen2Config,
        LLAMA_LIKE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": Recipe(Qwen3Config, LLAMA_LIKE | {"head_dim": 8}),
    "phi3": Recipe(
        Phi3Config,
        LLAMA_LIKE
        | {
            "hidden_size": 32,
            "sliding_window": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gemma2": Recipe(Gemma2Config, GEMMA | {"attn_logit_softcapping": 1.0}, attention="eager"),
    "gemma3_text": Recipe(
        Gemma3TextConfig, GEMMA | {"sliding_window_pattern": 2, "rope_parameters": GEMMA_3_ROPE}
    ),
    "olmo2": Recipe(Olmo2Config, LLAMA_LIKE),
}


def tiny_family(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """The recipe's model; in float64 with the replacements of `exact`."""
    recipe = RECIPES[family]
    model = build(recipe.config(**recipe.settings | overrides), dtype, seed, recipe.attention)
    return exact(model) if dtype == torch.float64 else model
