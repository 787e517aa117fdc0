"""Tiny random checkpoints of every family, saved by transformers, and their torch models."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from jaxtyping import Array
from transformers import PreTrainedModel

from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import read_json
from jaxedit.models.weights import load_safetensors_folder
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


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Three rows of 20 tokens."""
    return np.random.default_rng(0).integers(3, 300, (3, 20))


@pytest.fixture(scope="session", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One tiny model of each kind."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def typical(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One tiny model of each family, for what does not depend on the options."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


def make(kind: str, folder: Path) -> Tiny:
    """The model of this kind, saved to `folder` by transformers and loaded from there."""
    build, options = MODELS[kind]
    theirs = build(torch.float32, **options)
    save_tiny(theirs, tiny_tokenizer(), folder)
    config = decoder_config(read_json(folder / "config.json"))
    return Tiny(folder, theirs, Model(config), load_safetensors_folder(folder, config))
