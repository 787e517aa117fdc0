"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219): Llama with fused matrices (query, key, value; gate, up)."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Family, HFConfig, Settings, TensorMap, linear, rms_norm
from jaxedit.models.families.layers import with_windows
from jaxedit.models.families.llama import LEGACY, NORMS, Defaults, read


def config(values: HFConfig) -> DecoderConfig:
    """Reads a Phi-3 `config.json`; absent keys have the defaults of `transformers.Phi3Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "phi3")
    settings.refuse("attention_bias", False)
    settings.refuse("layer_types", None)
    defaults = Defaults(vocab_size=32064, d_ff=8192, max_positions=4096, d_model=3072, norm_eps=1e-5)
    base = read(settings, defaults, scalings=("default",), partial=True)
    window = settings.optional_integer("sliding_window")
    return with_windows(settings, base, window, lambda layer: window is not None)


def tensors(config: DecoderConfig) -> list[TensorMap]:
    """Every tensor of a Phi-3 checkpoint."""
    maps = [
        TensorMap("model.embed_tokens.weight", ("embedding",)),
        *rms_norm("model.norm", "final_norm"),
    ]
    for layer in range(config.n_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        for our_norm, their_norm in NORMS.items():
            maps += rms_norm(f"{theirs}.{their_norm}", f"{ours}.{our_norm}")
        for their_name, kind, parts in (
            ("self_attn.qkv_proj", "attention", ("query", "key", "value")),
            ("mlp.gate_up_proj", "mlp", ("gate", "up")),
        ):
            fused = tuple(f"{ours}.{kind}.{part}.kernel" for part in parts)
            maps.append(TensorMap(f"{theirs}.{their_name}.weight", fused, transposed=True))
        maps += linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.out", bias=False)
        maps += linear(f"{theirs}.mlp.down_proj", f"{ours}.mlp.down", bias=False)
    return maps if config.tied_head else maps + linear("lm_head", "head", bias=False)


PHI3 = Family(model_type="phi3", prefix="model.", ignored=LEGACY, config=config, tensors=tensors)
