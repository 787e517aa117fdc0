"""Gemma 2 (arXiv 2408.00118) and the text model of Gemma 3 (arXiv 2503.19786).

Norms before and after attention and MLP with scales `1 + w`, embeddings scaled by the root of their width, and
layers that see a window between layers that see all.
"""

import functools
from dataclasses import replace
from typing import Any

from jaxedit.errors import ModelError
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families.base import Family, HFConfig, Settings
from jaxedit.models.families.layers import with_windows
from jaxedit.models.families.llama import LEGACY, Defaults, read, tensors
from jaxedit.models.families.rope import read_rope

GLOBAL_THETA, LOCAL_BASE = 1e6, ("rope_local_base_freq", 1e4)  # rotary bases of Gemma 3
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
DEFAULTS = Defaults(
    vocab_size=256000,
    d_ff=9216,
    max_positions=8192,
    d_model=2304,
    n_layers=26,
    n_heads=8,
    n_kv_heads=4,
    head_dim=256,
    tied_head=True,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
)


def gemma2_config(values: HFConfig) -> DecoderConfig:
    """Reads a Gemma 2 `config.json`; absent keys have the defaults of `transformers.Gemma2Config`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "gemma2")
    return replace(
        _common(settings, DEFAULTS, every=2),
        score_cap=settings.optional_number("attn_logit_softcapping", 50.0),
        logit_cap=settings.optional_number("final_logit_softcapping", 30.0),
    )


def gemma3_config(values: HFConfig) -> DecoderConfig:
    """Reads a Gemma 3 text `config.json`; absent keys have the defaults of `transformers.Gemma3TextConfig`.

    Raises ModelError for a value of the wrong kind or an option that this library does not compute.
    """
    settings = Settings(values, "gemma3_text")
    settings.refuse("attn_logit_softcapping", None)
    defaults = DEFAULTS._replace(vocab_size=262208, max_positions=131072)
    base = _common(settings, defaults, every=settings.integer("sliding_window_pattern", 6))
    of_kinds = _object(settings, settings.values, "rope_parameters")
    everywhere = _object(settings, of_kinds, "full_attention") | _object(
        settings, settings.values, "rope_scaling"
    )
    theta, scaling = read_rope(settings, everywhere, settings.number("rope_theta", GLOBAL_THETA))
    local, local_theta = _object(settings, of_kinds, "sliding_attention"), settings.number(*LOCAL_BASE)
    local_theta, _ = read_rope(settings, local, local_theta, scalings=("default",))
    return replace(
        base,
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        qk_norm="head",
        logit_cap=settings.optional_number("final_logit_softcapping"),
    )


def _object(settings: Settings, given: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of this name among rotary settings, empty where there is none."""
    found = given.get(name) or {}
    if not isinstance(found, dict):
        raise ModelError(
            f"config.json of this {settings.family} model: {name} is {found!r}, expected an object"
        )
    return found


def _common(settings: Settings, defaults: Defaults, every: int) -> DecoderConfig:
    """What both have in common; one layer in `every` sees all tokens, unless `layer_types` says which."""
    settings.refuse("use_bidirectional_attention", False)
    base, bias = read(settings, defaults), settings.flag("attention_bias", False)
    window = settings.optional_integer("sliding_window", 4096)
    return replace(
        with_windows(settings, base, window, lambda layer: (layer + 1) % every != 0),
        attention_bias=bias,
        attention_out_bias=bias,
        query_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=base.d_model**0.5,
        norm_offset=1.0,
        post_norm=True,
    )


GEMMA2, GEMMA3 = (
    Family(
        model_type=name,
        prefix="model.",
        ignored=LEGACY,
        config=config,
        tensors=functools.partial(tensors, norms=NORMS),
    )
    for name, config in (("gemma2", gemma2_config), ("gemma3_text", gemma3_config))
)
