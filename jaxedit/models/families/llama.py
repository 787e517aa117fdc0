"""Llama (Touvron et al. 2023), the models of its shape, such as SmolLM2, and what its relatives share with it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import (
    MOST_LAYERS,
    Family,
    HFConfig,
    Settings,
    TensorMap,
    linear,
    rms_norm,
)
from jaxedit.models.families.rope import SCALINGS, read_rope, rope_values, rotary_width

LEGACY = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # a table that old versions saved
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


class Defaults(NamedTuple):
    """What absent keys mean; heads are those of Llama unless given."""

    vocab_size: int
    d_ff: int
    max_positions: int
    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: d_model / n_heads
    norm_eps: float = 1e-6
    tied_head: bool = False
    activation_key: str = "hidden_act"
    activation: str = "silu"


def read(
    settings: Settings, defaults: Defaults, scalings: tuple[str, ...] = SCALINGS, partial: bool = False
) -> DecoderConfig:
    """The part of a configuration that Llama and its relatives have in common; no biases.

    Raises ModelError for a value of the wrong kind, for a rotary scaling that is not in `scalings`, and for
    heads that are rotated in part, unless the family allows it with `partial`.
    """
    d_model = settings.integer("hidden_size", defaults.d_model)
    n_heads = settings.integer("num_attention_heads", defaults.n_heads)
    n_kv_heads = settings.optional_integer("num_key_value_heads", defaults.n_kv_heads or n_heads) or n_heads
    if n_heads % n_kv_heads:
        raise settings.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {n_heads}")
    head_dim = settings.integer("head_dim", defaults.head_dim or max(d_model // n_heads, 1))
    if head_dim % 2:
        raise settings.wrong("head_dim", f"an even size a head (it comes to {head_dim})")
    given = rope_values(settings)
    theta, scaling = read_rope(settings, given, settings.number("rope_theta", 10000.0), scalings)
    rotary_dim = rotary_width(settings, given, "partial_rotary_factor", 1.0, head_dim)
    if rotary_dim != head_dim and not partial:
        raise settings.wrong("partial_rotary_factor", "1.0, the only share that is supported")
    return DecoderConfig(
        family=settings.family,
        vocab_size=settings.integer("vocab_size", defaults.vocab_size),
        d_model=d_model,
        d_ff=settings.integer("intermediate_size", defaults.d_ff),
        n_layers=settings.integer("num_hidden_layers", defaults.n_layers, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=settings.integer("max_position_embeddings", defaults.max_positions),
        norm="rms",
        norm_eps=settings.number("rms_norm_eps", defaults.norm_eps),
        position="rope",
        activation=settings.activation(defaults.activation_key, defaults.activation),
        gated_mlp=True,
        attention_bias=False,
        attention_out_bias=False,
        mlp_bias=False,
        tied_head=settings.flag("tie_word_embeddings", defaults.tied_head),
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
    )


def config(values: HFConfig) -> DecoderConfig:
    """Reads a Llama `config.json`; absent keys have the defaults of `transformers.LlamaConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "llama")
    bias = settings.flag("attention_bias", False)
    return replace(
        read(settings, Defaults(vocab_size=32000, d_ff=11008, max_positions=2048)),
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
    )


def tensors(config: DecoderConfig, norms: Mapping[str, str] = NORMS) -> list[TensorMap]:
    """Every tensor of a checkpoint in Llama's layout; `norms` are their names of a block's norms, by ours."""
    maps = [
        TensorMap("model.embed_tokens.weight", ("embedding",)),
        *rms_norm("model.norm", "final_norm"),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        for our_norm, their_norm in norms.items():
            maps += rms_norm(f"{theirs}.{their_norm}", f"{ours}.{our_norm}")
        attention, bias = f"{theirs}.self_attn", config.attention_bias
        for part in ("query", "key", "value"):
            maps += linear(f"{attention}.{part[0]}_proj", f"{ours}.attention.{part}", bias)
        maps += linear(f"{attention}.o_proj", f"{ours}.attention.out", config.attention_out_bias)
        for part in ("query", "key") if config.qk_norm else ():
            maps += rms_norm(f"{attention}.{part[0]}_norm", f"{ours}.attention.{part}_norm")
        for part in ("gate", "up", "down"):
            maps += linear(f"{theirs}.mlp.{part}_proj", f"{ours}.mlp.{part}", config.mlp_bias)
    return maps if config.tied_head else maps + linear("lm_head", "head", bias=False)


LLAMA = Family(model_type="llama", prefix="model.", ignored=LEGACY, config=config, tensors=tensors)
