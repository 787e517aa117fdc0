"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window in all layers, or none."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Family, HFConfig, Settings
from jaxedit.models.families.layers import with_windows
from jaxedit.models.families.llama import LEGACY, Defaults, read, tensors


def config(values: HFConfig) -> DecoderConfig:
    """Reads a Mistral `config.json`; absent keys have the defaults of `transformers.MistralConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "mistral")
    settings.refuse("layer_types", None)
    base = read(settings, Defaults(vocab_size=32000, d_ff=14336, max_positions=131072, n_kv_heads=8))
    window = settings.optional_integer("sliding_window", 4096)
    return with_windows(settings, base, window, lambda layer: window is not None)


MISTRAL = Family(model_type="mistral", prefix="model.", ignored=LEGACY, config=config, tensors=tensors)
