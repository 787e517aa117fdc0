"""The architectures this library reads and writes, by Hugging Face's `model_type`."""

from jaxedit.errors import ModelError, unknown_name
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Bounds, Family, HFConfig, TensorMap
from jaxedit.models.families.gemma import GEMMA2, GEMMA3
from jaxedit.models.families.gpt2 import GPT2
from jaxedit.models.families.gptj import GPTJ
from jaxedit.models.families.llama import LLAMA
from jaxedit.models.families.mistral import MISTRAL
from jaxedit.models.families.neox import NEOX
from jaxedit.models.families.olmo2 import OLMO2
from jaxedit.models.families.opt import OPT
from jaxedit.models.families.phi3 import PHI3
from jaxedit.models.families.qwen import QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2,
        GPTJ,
        NEOX,
        OPT,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        PHI3,
        GEMMA2,
        GEMMA3,
        OLMO2,
    )
}

__all__ = ["FAMILIES", "Bounds", "Family", "HFConfig", "TensorMap", "decoder_config", "family_of"]


def family_of(model_type: str) -> Family:
    """The family of an architecture. Raises ModelError, naming the nearest ones, for an unknown one."""
    if model_type not in FAMILIES:
        raise ModelError(unknown_name("architecture", model_type, FAMILIES))
    return FAMILIES[model_type]


def decoder_config(values: HFConfig) -> DecoderConfig:
    """Our description of the model that a `config.json` describes.

    Raises ModelError for an unknown architecture, a wrong value or an option that is not supported.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"config.json names no model_type; known: {', '.join(sorted(FAMILIES))}")
    return family_of(model_type).config(values)
