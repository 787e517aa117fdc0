"""Presets: every setting is one that its editor has, and each model gets its own."""

import dataclasses

import pytest

from jaxedit.editors import METHODS, Settings
from jaxedit.editors.depth import single_layer
from jaxedit.editors.presets import COMPOSED, DEPTH, PRESETS, SHAPES, TABLE, known_model, preset_for
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import decoder_config
from tests.cases import Case

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
PUBLISHED = {
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_head": 25, "n_layer": 48},
    "llama-2-7b": LLAMA,
    "llama-3-8b": LLAMA
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    },
    "gpt-j-6b": {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary_dim": 64},
    "mistral-7b": LLAMA
    | {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": None},
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}
OTHERS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12},
    "llama-2-13b": LLAMA | {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40},
    "mistral-like": LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8},
    "pythia-6.9b": {
        "model_type": "gpt_neox",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
    },
    "smollm-135m": PUBLISHED["smollm2-135m"] | {"rope_theta": 10000.0},
}


def shaped(name: str) -> DecoderConfig:
    """A configuration of the shape in the table, whatever else it is."""
    shape = SHAPES[name]
    return dataclasses.replace(decoder_config(LLAMA), **shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_is_known_by_its_own_configuration(name: str) -> None:
    assert known_model(decoder_config(PUBLISHED[name])) == name


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_not_taken_for_it(name: str) -> None:
    config = decoder_config(OTHERS[name])
    assert known_model(config) is None
    assert preset_for("memit", config) == (DEPTH, {})
    assert METHODS["rome"].configure(config).layers == (single_layer(config),)


def test_shapes_exclude_each_other() -> None:
    assert [known_model(shaped(name)) for name in SHAPES] == list(SHAPES)


@pytest.mark.parametrize(("editor", "model"), sorted(PRESETS))
def test_a_preset_is_what_the_editor_is_configured_with(editor: str, model: str) -> None:
    """Nothing of it is lost on the way, or overruled; that editors read what they hold, `test_settings` proves."""
    config, preset = shaped(model), preset_for(editor, shaped(model))
    assert preset is PRESETS[editor, model]
    assert preset.settings
    found = dataclasses.asdict(METHODS[editor].configure(config))
    flat = found | found.get("values", {})
    assert {name: flat[name] for name in preset.settings} == preset.settings
    assert not (METHODS[editor].without | METHODS[editor].fixed) & preset.settings.keys()
    if "null_threshold" in preset.settings:
        assert found["null_fraction"] is None


def test_names_of_settings_are_those_of_the_command_line() -> None:
    given = {name for row in PRESETS.values() for name in row.settings}
    assert given <= {field.name for field in dataclasses.fields(Settings)}


def test_the_published_figures_of_memit_on_llama_3() -> None:
    config = METHODS["memit"].configure(decoder_config(PUBLISHED["llama-3-8b"]))
    assert (config.layers, config.lam) == ((4, 5, 6, 7, 8), 15000.0)
    assert (config.values.steps, config.values.clamp) == (25, 0.75)
    assert preset_for("memit", decoder_config(PUBLISHED["llama-3-8b"])).source == TABLE


GIVEN: dict[str, dict[str, float]] = {
    "lyaplock": {"lam": 1000.0},
    "betaedit": {"lam": 3000.0, "lam_n": 10.0, "null_threshold": 0.02},
    "langedit": {"lam_n": 10.0, "null_threshold": 0.02},
    "evoedit": {"lam_n": 4.0, "null_threshold": 0.02},
    "nas": {"lam_n": 10.0, "null_threshold": 0.02},
    "d4s": {},
    "pmet": {"lam": 6000.0},
}


@pytest.mark.parametrize("model", ["gpt2-xl", "gpt-j-6b", "llama-2-7b", "llama-3-8b"])
@pytest.mark.parametrize("editor", GIVEN)
def test_the_papers_models_have_the_papers_settings_of_methods_that_build_on_others(
    editor: str, model: str
) -> None:
    """Their own weights; layers and values of MEMIT, and of AlphaEdit where a null space is kept.

    LyapLock's release has AlphaEdit's learning rate on Llama-3, MEMIT's on GPT-J.
    """
    shape = shaped(model)
    found = METHODS[editor].configure(shape)
    memit, alphaedit = (METHODS[name].configure(shape) for name in ("memit", "alphaedit"))
    assert {name: getattr(found, name) for name in GIVEN[editor]} == GIVEN[editor]
    assert found.layers == memit.layers
    if editor == "pmet":
        values = found.values
        assert (values.site, values.learning_rate, values.steps, values.kl) == ("attention+mlp", 0.2, 30, 1.0)
    else:
        like_memit = editor == "d4s" or (editor == "lyaplock" and model != "llama-3-8b")
        assert found.values == (memit if like_memit else alphaedit).values
    if editor == "d4s":
        assert found.lam == memit.lam
    own = TABLE if (editor, model) == ("pmet", "gpt-j-6b") else COMPOSED
    assert preset_for(editor, shape).source == own


def test_a_departure_comes_before_the_preset() -> None:
    config = decoder_config(PUBLISHED["gpt2-xl"])
    found = METHODS["memit"].configure(config, Settings(lam=7.0))
    assert (found.lam, found.layers) == (7.0, (13, 14, 15, 16, 17))


def test_a_tiny_model_takes_the_depth_rule(gpt2: Case) -> None:
    config = gpt2.model.config
    assert preset_for("rome", config).source == DEPTH
    assert METHODS["rome"].configure(config) == METHODS["rome"].preset(config)
