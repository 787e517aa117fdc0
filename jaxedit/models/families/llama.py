"""Llama (Touvron et al. 2023) and the models of its shape, such as SmolLM2."""

from jaxedit.errors import ModelError
from jaxedit.models.config import DecoderConfig, RopeScaling
from jaxedit.models.families.base import MOST_LAYERS, Family, HFConfig, Settings, TensorMap


def config(values: HFConfig) -> DecoderConfig:
    """Reads a Llama `config.json`; absent keys have the defaults of `transformers.LlamaConfig`.

    Raises ModelError for a value of the wrong kind and for a rotary scaling other than "llama3".
    """
    settings = Settings(values, "llama")
    d_model, n_heads = settings.integer("hidden_size", 4096), settings.integer("num_attention_heads", 32)
    n_kv_heads = settings.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise settings.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {n_heads}")
    head_dim = settings.integer("head_dim", max(d_model // n_heads, 1))
    if head_dim % 2:
        raise settings.wrong("head_dim", f"an even size a head (it comes to {head_dim})")
    bias = settings.flag("attention_bias", False)
    theta, scaling = _rope(settings)
    return DecoderConfig(
        family="llama",
        vocab_size=settings.integer("vocab_size", 32000),
        d_model=d_model,
        d_ff=settings.integer("intermediate_size", 11008),
        n_layers=settings.integer("num_hidden_layers", 32, MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=settings.integer("max_position_embeddings", 2048),
        norm="rms",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        position="rope",
        activation=settings.activation("hidden_act", "silu"),
        gated_mlp=True,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        tied_head=settings.flag("tie_word_embeddings", False),
        rope_theta=theta,
        rope_scaling=scaling,
    )


def _rope(settings: Settings) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    settings.refuse("partial_rotary_factor", 1.0)
    given = settings.values.get("rope_parameters") or settings.values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelError(
            f"config.json of this llama model: rotary parameters are {given!r}, expected an object"
        )
    rope = Settings(given, "llama")
    rope.refuse("partial_rotary_factor", 1.0)
    theta = rope.number("rope_theta", settings.number("rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(
            f"config.json of this llama model: rotary scaling {kind!r} is not supported, "
            "only 'default' and 'llama3'"
        )
    return theta, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.integer("original_max_position_embeddings"),
    )


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of a Llama checkpoint."""
    maps = [
        TensorMap("model.embed_tokens.weight", ("embedding",)),
        TensorMap("model.norm.weight", ("final_norm.scale",)),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        maps.append(TensorMap(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.scale",)))
        maps.append(TensorMap(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.scale",)))
        for part in ("query", "key", "value"):
            maps += _linear(
                f"{theirs}.self_attn.{part[0]}_proj", f"{ours}.attention.{part}", config.attention_bias
            )
        maps += _linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.out", config.attention_out_bias)
        for part in ("gate", "up", "down"):
            maps += _linear(f"{theirs}.mlp.{part}_proj", f"{ours}.mlp.{part}", config.mlp_bias)
    if not config.tied_head:
        maps += _linear("lm_head", "head", bias=False)
    return maps


def _linear(theirs: str, ours: str, bias: bool) -> list[TensorMap]:
    kernel = TensorMap(f"{theirs}.weight", (f"{ours}.kernel",), transposed=True)
    return [kernel, TensorMap(f"{theirs}.bias", (f"{ours}.bias",))] if bias else [kernel]


LLAMA = Family(
    model_type="llama",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # a table that old versions saved
    config=config,
    tensors=tensors,
)
