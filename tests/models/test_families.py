"""Configurations of Hugging Face, read or refused."""

import pytest
from transformers import CONFIG_MAPPING

from jaxedit.errors import ModelError
from jaxedit.models.config import LinearScaling, RopeScaling
from jaxedit.models.families import FAMILIES, decoder_config
from jaxedit.models.model import Model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


# config.json as it lies on the hub, saved by older versions, without what is no matter here.
PUBLISHED = {
    "pythia-70m": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "mistral-7b-v0.1": {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096},
    "mistral-7b-v0.3": {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None},
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584,
        "num_attention_heads": 16,
        "num_hidden_layers": 42,
        "num_key_value_heads": 8,
        "query_pre_attn_scalar": 256,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
    },
    "gemma-3-4b, its text": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "rope_global_base_freq": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000.0,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_mean_what_transformers_means(name: str) -> None:
    assert decoder_config({"model_type": name}) == decoder_config(CONFIG_MAPPING[name]().to_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_older_versions_mean_what_transformers_reads_in_them(name: str) -> None:
    given = PUBLISHED[name]
    theirs = CONFIG_MAPPING[given["model_type"]].from_dict(dict(given)).to_dict()
    assert decoder_config(given) == decoder_config(theirs)


def test_windows_are_where_the_family_has_them() -> None:
    def of(name: str) -> tuple[int | None, tuple[int, ...]]:
        config = decoder_config(PUBLISHED[name])
        return config.window, config.local_layers

    assert of("mistral-7b-v0.1") == (4096, tuple(range(32)))
    assert of("mistral-7b-v0.3") == of("qwen2.5-7b") == of("qwen3-8b") == (None, ())
    assert of("gemma-2-9b") == (4096, tuple(range(0, 42, 2)))
    assert of("gemma-3-4b, its text") == (1024, tuple(layer for layer in range(34) if layer % 6 != 5))
    late = PUBLISHED["qwen2.5-7b"] | {"use_sliding_window": True, "max_window_layers": 26}
    assert decoder_config(late).local_layers == (26, 27)


def test_gemma_3_has_a_rotary_base_for_each_kind_of_layer() -> None:
    config = decoder_config(PUBLISHED["gemma-3-4b, its text"])
    assert (config.rope_theta, config.rope_scaling) == (1e6, LinearScaling(8.0))
    assert config.local_rope_theta == 1e4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_map_covers_every_parameter_once(name: str, tied: bool) -> None:
    biases = {"attention_bias": name != "phi3", "mlp_bias": True, "tie_word_embeddings": tied}
    small = {"n_embd": 24, "n_layer": 2, "n_head": 4, "hidden_size": 24, "num_hidden_layers": 2} | biases
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rotary_dim": 2, "rotary_pct": 1.0}
    config = decoder_config({"model_type": name} | small)
    maps = FAMILIES[name].tensors(config)
    paths = [path for tensor in maps for path in tensor.paths]
    assert sorted(paths) == sorted(Model(config).shapes)
    assert len({tensor.name for tensor in maps}) == len(maps)


def test_old_and_new_rotary_keys_mean_the_same() -> None:
    new = decoder_config({"model_type": "llama", "rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    old = decoder_config({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3})
    assert new == old
    assert (new.rope_theta, new.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 8192))


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "yarn"), ("qwen2", "yarn"), ("phi3", "longrope"), ("gemma3_text", "dynamic")]
)
def test_unsupported_rotary_scaling_is_named(key: str, name: str, kind: str) -> None:
    with pytest.raises(ModelError, match=f"this {name} model: rotary scaling '{kind}' is not supported"):
        decoder_config({"model_type": name, "rope_scaling": {key: kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt"}, "unknown architecture 'gpt'.*'gpt2'.*Known: gemma2, .*llama, .*qwen3"),
        ({"model_type": "bert"}, "unknown architecture 'bert'"),
        ({"model_type": "gemma3"}, "unknown architecture 'gemma3'.*'gemma3_text'"),
        ({}, "no model_type"),
        ({"model_type": "gpt2", "n_layer": -1}, "n_layer is -1, expected a positive integer"),
        ({"model_type": "gpt2", "n_embd": 25}, "multiple of n_head"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "divisor"),
        ({"model_type": "llama", "hidden_act": "relu6"}, "unknown activation 'relu6'"),
        ({"model_type": "llama", "rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1.0"),
        ({"model_type": "gptj", "rotary_dim": 63}, "rotary_dim is 63, expected an even number"),
        ({"model_type": "gptj", "rotary_dim": None}, "rotary_dim is None"),
        ({"model_type": "gpt_neox", "rotary_pct": 0.01}, "a share of 0.01 of 96 dimensions is rotated"),
        (
            {"model_type": "opt", "word_embed_proj_dim": 512},
            "word_embed_proj_dim = 512 is not supported, only 768",
        ),
        (
            {"model_type": "opt", "do_layer_norm_before": False},
            "do_layer_norm_before = False is not supported",
        ),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, "layer_types = .* is not supported"),
        ({"model_type": "qwen2", "use_mrope": True}, "use_mrope = True is not supported"),
        (
            {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 32},
            "layer_types is .*sliding_attention",
        ),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "expected 26 of sliding_attention"),
        (
            {"model_type": "gemma2", "sliding_window": None},
            "sliding_window is None, expected a number of tokens",
        ),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3}},
            "full_attention is 3, expected",
        ),
    ],
)
def test_what_is_refused_is_named(values: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoder_config(values)
