"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115), and Qwen3 (arXiv 2505.09388), which normalises heads."""

from dataclasses import replace

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Family, HFConfig, Settings
from jaxedit.models.families.layers import with_windows
from jaxedit.models.families.llama import LEGACY, Defaults, read, tensors


def qwen2_config(values: HFConfig) -> DecoderConfig:
    """Reads a Qwen2 `config.json`; absent keys have the defaults of `transformers.Qwen2Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "qwen2")
    settings.refuse("use_mrope", False)
    base = read(settings, Defaults(vocab_size=151936, d_ff=22016, max_positions=32768, n_kv_heads=32))
    return replace(_windowed(settings, base), attention_bias=True)


def qwen3_config(values: HFConfig) -> DecoderConfig:
    """Reads a Qwen3 `config.json`; absent keys have the defaults of `transformers.Qwen3Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "qwen3")
    defaults = Defaults(vocab_size=151936, d_ff=22016, max_positions=32768, n_kv_heads=32, head_dim=128)
    base, bias = read(settings, defaults), settings.flag("attention_bias", False)
    return replace(_windowed(settings, base), attention_bias=bias, attention_out_bias=bias, qk_norm="head")


def _windowed(settings: Settings, base: DecoderConfig) -> DecoderConfig:
    """With `use_sliding_window`, the layers from `max_window_layers` on see a window."""
    window = settings.optional_integer("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    first = settings.values.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise settings.wrong("max_window_layers", "a number of layers")
    return with_windows(settings, base, window, lambda layer: window is not None and layer >= first)


QWEN2 = Family(model_type="qwen2", prefix="model.", ignored=LEGACY, config=qwen2_config, tensors=tensors)
QWEN3 = Family(model_type="qwen3", prefix="model.", ignored=LEGACY, config=qwen3_config, tensors=tensors)
