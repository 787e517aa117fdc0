"""OPT (Zhang et al. 2022, arXiv 2205.01068), the sizes that normalise before attention and MLP: all but 350m."""

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
    """Reads an OPT `config.json`; absent keys have the defaults of `transformers.OPTConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "opt")
    settings.refuse("do_layer_norm_before", True)
    settings.refuse("_remove_final_layer_norm", False)
    settings.refuse("layer_norm_elementwise_affine", True)
    d_model, n_heads = settings.heads(("hidden_size", 768), ("num_attention_heads", 12))
    settings.refuse("word_embed_proj_dim", d_model)
    bias = settings.flag("enable_bias", True)
    return DecoderConfig(
        family="opt",
        vocab_size=settings.integer("vocab_size", 50272),
        d_model=d_model,
        d_ff=settings.integer("ffn_dim", 3072),
        n_layers=settings.integer("num_hidden_layers", 12, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        max_positions=settings.integer("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=1e-5,
        position="learned",
        activation=settings.activation("activation_function", "relu"),
        gated_mlp=False,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        tied_head=settings.flag("tie_word_embeddings", True),
        position_offset=2,
    )


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of an OPT checkpoint."""
    top = "model.decoder"
    maps = [
        TensorMap(f"{top}.embed_tokens.weight", ("embedding",)),
        TensorMap(f"{top}.embed_positions.weight", ("position_embedding",)),
        *layer_norm(f"{top}.final_layer_norm", "final_norm"),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"{top}.layers.{layer}", f"layers.{layer}"
        maps += layer_norm(f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm")
        maps += layer_norm(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm")
        for part in ("query", "key", "value"):
            name = f"{theirs}.self_attn.{part[0]}_proj"
            maps += linear(name, f"{ours}.attention.{part}", config.attention_bias)
        maps += linear(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out", config.attention_out_bias)
        maps += linear(f"{theirs}.fc1", f"{ours}.mlp.up", config.mlp_bias)
        maps += linear(f"{theirs}.fc2", f"{ours}.mlp.down", config.mlp_bias)
    return maps if config.tied_head else maps + linear("lm_head", "head", bias=False)


OPT = Family(model_type="opt", prefix="model.", ignored=r"", config=config, tensors=tensors)
