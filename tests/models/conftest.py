"""Tiny random checkpoints of every family, saved by transformers, and their torch models."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from jaxtyping import Array
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import read_json
from jaxedit.models.weights import load_safetensors_folder
from tests.reference.families import GEMMA_3_ROPE, RECIPES, tiny_family
from tests.reference.tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "gpt2": (tiny_gpt2, {}),
    "gpt2-untied": (tiny_gpt2, {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"}),
    "llama": (tiny_llama, {}),
    "llama-tied": (tiny_llama, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-multihead": (tiny_llama, {"num_key_value_heads": 4, "head_dim": 8}),
    "llama3-rope": (tiny_llama, {"rope_parameters": LLAMA3_ROPE, "head_dim": 12}),
    "llama-linear-rope": (tiny_llama, {"rope_parameters": GEMMA_3_ROPE["full_attention"]}),
}
MODELS |= {family: (functools.partial(tiny_family, family), {}) for family in RECIPES}
# Of every family the options that its recipe leaves out, and the other kind of head.
OTHERS = {
    "gptj": {"tie_word_embeddings": True, "n_inner": 40},
    "gpt_neox": {"tie_word_embeddings": True, "use_parallel_residual": False, "attention_bias": False},
    "opt": {"tie_word_embeddings": False, "enable_bias": False},
    "mistral": {"tie_word_embeddings": True, "sliding_window": None, "head_dim": 8},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "phi3": {"tie_word_embeddings": True, "sliding_window": None, "rope_parameters": None},
    "gemma2": {
        "tie_word_embeddings": False,
        "attention_bias": True,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma3_text": {"tie_word_embeddings": False, "final_logit_softcapping": None, "rope_parameters": None},
    "olmo2": {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 4},
}
MODELS |= {
    f"{family}-other": (functools.partial(tiny_family, family), options) for family, options in OTHERS.items()
}


@dataclass(frozen=True)
class Tiny:
    """A tiny model twice: ours, loaded from `folder`, and torch's."""

    folder: Path
    torch: PreTrainedModel
    model: Model
    params: dict[str, Array]

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Ours, [N, T, vocab]."""
        return np.asarray(jax.jit(lambda params: self.model.bind(params)(tokens))(self.params))


def torch_logits(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """Torch's logits, [N, T, vocab]."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def rewritten(tiny: Tiny, folder: Path, change: Callable[[dict], dict]) -> Path:
    """A copy of the checkpoint whose tensors went through `change(dict)`."""
    tensors = load_file(tiny.folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(tiny: Tiny, folder: Path) -> dict[str, Array]:
    """The parameters in `folder`, for the tiny model's configuration."""
    return load_safetensors_folder(folder, tiny.model.config)


def assert_same(tiny: Tiny, params: dict[str, Array]) -> None:
    """All parameters are the tiny model's, bit for bit and in its order."""
    assert list(params) == list(tiny.params)
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, tiny.params[path], err_msg=path)


def assert_bare_loads(tiny: Tiny, folder: Path, prefix: str, buffers: dict[str, np.ndarray]) -> None:
    """Without the prefix of its names and with buffers that old versions saved the checkpoint is the same model."""
    bare = rewritten(tiny, folder, lambda t: {n.removeprefix(prefix): a for n, a in t.items()} | buffers)
    assert_same(tiny, loaded(tiny, bare))


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Three rows of 20 tokens."""
    return np.random.default_rng(0).integers(3, 300, (3, 20))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Tiny models by kind, each made once."""
    return functools.cache(lambda kind: make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session", params=MODELS)
def tiny(request: pytest.FixtureRequest, made: Callable[[str], Tiny]) -> Tiny:
    """One tiny model of each kind."""
    return made(request.param)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def typical(request: pytest.FixtureRequest, made: Callable[[str], Tiny]) -> Tiny:
    """One of each of two families, for what does not depend on the options."""
    return made(request.param)


@pytest.fixture(scope="session", params=RECIPES)
def family(request: pytest.FixtureRequest, made: Callable[[str], Tiny]) -> Tiny:
    """One of every other family."""
    return made(request.param)


def make(kind: str, folder: Path) -> Tiny:
    """The model of this kind, saved to `folder` by transformers and loaded from there."""
    build, options = MODELS[kind]
    theirs = build(torch.float32, **options)
    save_tiny(theirs, tiny_tokenizer(), folder)
    config = decoder_config(read_json(folder / "config.json"))
    return Tiny(folder, theirs, Model(config), load_safetensors_folder(folder, config))
