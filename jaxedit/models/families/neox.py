"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia: parallel residual, heads rotated in part."""

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
from jaxedit.models.families.rope import read_rope, rope_values, rotary_width


def config(values: HFConfig) -> DecoderConfig:
    """Reads a GPT-NeoX `config.json`; absent keys have the defaults of `transformers.GPTNeoXConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "gpt_neox")
    d_model, n_heads = settings.heads(("hidden_size", 6144), ("num_attention_heads", 64))
    given = rope_values(settings)
    theta, scaling = read_rope(settings, given, settings.number("rotary_emb_base", 10000.0))
    bias = settings.flag("attention_bias", True)
    return DecoderConfig(
        family="gpt_neox",
        vocab_size=settings.integer("vocab_size", 50432),
        d_model=d_model,
        d_ff=settings.integer("intermediate_size", 24576),
        n_layers=settings.integer("num_hidden_layers", 44, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        max_positions=settings.integer("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        position="rope",
        activation=settings.activation("hidden_act", "gelu"),
        gated_mlp=False,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=True,
        tied_head=settings.flag("tie_word_embeddings", False),
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=rotary_width(settings, given, "rotary_pct", 0.25, d_model // n_heads),
        parallel=settings.flag("use_parallel_residual", True),
    )


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of a GPT-NeoX checkpoint; query, key and value follow each other head by head."""
    maps = [
        TensorMap("gpt_neox.embed_in.weight", ("embedding",)),
        *layer_norm("gpt_neox.final_layer_norm", "final_norm"),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"gpt_neox.layers.{layer}", f"layers.{layer}"
        maps += layer_norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
        maps += layer_norm(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm")
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))[: 1 + config.attention_bias]:
            fused = tuple(f"{ours}.attention.{part}.{leaf}" for part in ("query", "key", "value"))
            name = f"{theirs}.attention.query_key_value.{kind}"
            maps.append(TensorMap(name, fused, transposed=True, groups=config.n_heads))
        maps += linear(f"{theirs}.attention.dense", f"{ours}.attention.out", config.attention_out_bias)
        maps += linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up", bias=True)
        maps += linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down", bias=True)
    return maps if config.tied_head else maps + linear("embed_out", "head", bias=False)


NEOX = Family(
    model_type="gpt_neox",
    prefix="gpt_neox.",
    ignored=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",  # buffers of old versions
    config=config,
    tensors=tensors,
    heads=("embed_out.weight", "lm_head.weight"),
)
