"""Configurations of Hugging Face, read or refused."""

import pytest
from transformers import GPT2Config, LlamaConfig

from jaxedit.errors import ModelError
from jaxedit.models.config import RopeScaling
from jaxedit.models.families import FAMILIES, decoder_config
from jaxedit.models.model import Model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("config", [GPT2Config(), LlamaConfig()], ids=lambda config: config.model_type)
def test_absent_keys_mean_what_transformers_means(config) -> None:
    assert decoder_config({"model_type": config.model_type}) == decoder_config(config.to_dict())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_map_covers_every_parameter_once(name: str, tied: bool) -> None:
    biases = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": tied}
    small = {"n_embd": 24, "n_layer": 2, "n_head": 4, "hidden_size": 24, "num_hidden_layers": 2} | biases
    config = decoder_config({"model_type": name, "num_attention_heads": 4} | small)
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
def test_unsupported_rotary_scaling_is_named(key: str) -> None:
    with pytest.raises(ModelError, match="'yarn' is not supported"):
        decoder_config({"model_type": "llama", "rope_scaling": {key: "yarn", "factor": 2.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt"}, "unknown architecture 'gpt'.*'gpt2'.*Known: gpt2, llama"),
        ({"model_type": "bert"}, "unknown architecture 'bert'"),
        ({}, "no model_type"),
        ({"model_type": "gpt2", "n_layer": -1}, "n_layer is -1, expected a positive integer"),
        ({"model_type": "gpt2", "n_embd": 25}, "multiple of n_head"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "divisor"),
        ({"model_type": "llama", "hidden_act": "relu6"}, "unknown activation 'relu6'"),
        ({"model_type": "llama", "rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ],
)
def test_what_is_refused_is_named(values: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoder_config(values)
