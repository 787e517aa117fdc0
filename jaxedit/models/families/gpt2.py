"""GPT-2 (Radford et al. 2019). Its projections are stored `[in, out]`, query, key and value in one tensor."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import (
    MOST_LAYERS,
    Family,
    HFConfig,
    Settings,
    TensorMap,
    layer_norm,
    linear,
)


def config(values: HFConfig) -> DecoderConfig:
    """Reads a GPT-2 `config.json`; absent keys have the defaults of `transformers.GPT2Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "gpt2")
    settings.refuse("scale_attn_weights", True)
    settings.refuse("scale_attn_by_inverse_layer_idx", False)
    settings.refuse("add_cross_attention", False)
    d_model, n_heads = settings.heads(("n_embd", 768), ("n_head", 12))
    return DecoderConfig(
        family="gpt2",
        vocab_size=settings.integer("vocab_size", 50257),
        d_model=d_model,
        d_ff=settings.integer("n_inner", 4 * d_model),
        n_layers=settings.integer("n_layer", 12, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        max_positions=settings.integer("n_positions", 1024),
        norm="layer",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        position="learned",
        activation=settings.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_head=settings.flag("tie_word_embeddings", True),
    )


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of a GPT-2 checkpoint."""
    maps = [
        TensorMap("transformer.wte.weight", ("embedding",)),
        TensorMap("transformer.wpe.weight", ("position_embedding",)),
        *layer_norm("transformer.ln_f", "final_norm"),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"transformer.h.{layer}", f"layers.{layer}"
        maps += layer_norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        maps += layer_norm(f"{theirs}.ln_2", f"{ours}.mlp_norm")
        for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
            fused = tuple(f"{ours}.attention.{part}.{leaf}" for part in ("query", "key", "value"))
            maps.append(TensorMap(f"{theirs}.attn.c_attn.{kind}", fused))
        maps += _stored_as_ours(f"{theirs}.attn.c_proj", f"{ours}.attention.out")
        maps += _stored_as_ours(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up")
        maps += _stored_as_ours(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down")
    return maps if config.tied_head else maps + linear("lm_head", "head", bias=False)


def _stored_as_ours(theirs: str, ours: str) -> list[TensorMap]:
    return [
        TensorMap(f"{theirs}.weight", (f"{ours}.kernel",)),
        TensorMap(f"{theirs}.bias", (f"{ours}.bias",)),
    ]


GPT2 = Family(
    model_type="gpt2",
    prefix="transformer.",
    ignored=r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)",  # causal masks saved by old versions
    config=config,
    tensors=tensors,
)
