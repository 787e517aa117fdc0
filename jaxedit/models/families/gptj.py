"""GPT-J (Wang and Komatsuzaki 2021): parallel residual behind one norm, neighbouring dimensions rotated together."""

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
    """Reads a GPT-J `config.json`; absent keys have the defaults of `transformers.GPTJConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "gptj")
    d_model, n_heads = settings.heads(("n_embd", 4096), ("n_head", 16))
    head_dim, rotary_dim = d_model // n_heads, settings.optional_integer("rotary_dim", 64)
    if rotary_dim is None or rotary_dim % 2 or rotary_dim > head_dim:
        raise settings.wrong("rotary_dim", f"an even number, {head_dim} (a head's size) at most")
    return DecoderConfig(
        family="gptj",
        vocab_size=settings.integer("vocab_size", 50400),
        d_model=d_model,
        d_ff=settings.integer("n_inner", 4 * d_model),
        n_layers=settings.integer("n_layer", 28, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        max_positions=settings.integer("n_positions", 2048),
        norm="layer",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        position="rope",
        activation=settings.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        attention_bias=False,
        attention_out_bias=False,
        mlp_bias=True,
        tied_head=settings.flag("tie_word_embeddings", False),
        rotary_dim=rotary_dim,
        rotary_pairs="neighbours",
        parallel=True,
        shared_norm=True,
        head_bias=True,
    )


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of a GPT-J checkpoint."""
    maps = [
        TensorMap("transformer.wte.weight", ("embedding",)),
        *layer_norm("transformer.ln_f", "final_norm"),
        TensorMap("lm_head.bias", ("head_bias",)),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"transformer.h.{layer}", f"layers.{layer}"
        maps += layer_norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        for part in ("query", "key", "value"):
            maps += linear(f"{theirs}.attn.{part[0]}_proj", f"{ours}.attention.{part}", bias=False)
        maps += linear(f"{theirs}.attn.out_proj", f"{ours}.attention.out", bias=False)
        maps += linear(f"{theirs}.mlp.fc_in", f"{ours}.mlp.up", bias=True)
        maps += linear(f"{theirs}.mlp.fc_out", f"{ours}.mlp.down", bias=True)
    return maps if config.tied_head else maps + linear("lm_head", "head", bias=False)


GPTJ = Family(
    model_type="gptj",
    prefix="transformer.",
    ignored=r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",  # masks and tables saved by old versions
    config=config,
    tensors=tensors,
)
