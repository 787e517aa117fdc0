"""OLMo 2 (arXiv 2501.00656): Llama with norms after attention and MLP instead of before, and on queries and keys."""

import functools
from dataclasses import replace

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Family, HFConfig, Settings
from jaxedit.models.families.llama import LEGACY, Defaults, read, tensors

NORMS = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


def config(values: HFConfig) -> DecoderConfig:
    """Reads an OLMo 2 `config.json`; absent keys have the defaults of `transformers.Olmo2Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "olmo2")
    bias = settings.flag("attention_bias", False)
    return replace(
        read(settings, Defaults(vocab_size=50304, d_ff=11008, max_positions=2048, norm_eps=1e-5)),
        attention_bias=bias,
        attention_out_bias=bias,
        pre_norm=False,
        post_norm=True,
        qk_norm="projection",
    )


OLMO2 = Family(
    model_type="olmo2",
    prefix="model.",
    ignored=LEGACY,
    config=config,
    tensors=functools.partial(tensors, norms=NORMS),
)
