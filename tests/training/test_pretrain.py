"""Training of small decoders from random weights."""

from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from experiments.small_models import SmallModels, family_config, make_tokenizer
from jaxedit.errors import ConfigError, RunError
from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.models.sources import load
from jaxedit.models.weights import save_folder
from jaxedit.training.pretrain import PretrainPlan, pack_rows, pretrain
from jaxedit.types import TextBatch
from tests.cases import relative, same_bits

PLAN = PretrainPlan(steps=12, rows=4, warmup_steps=2, learning_rate=1e-2, every=4)
OPTIONS = SmallModels(layers=2, width=16, heads=2, vocabulary=300)
SENTENCES = [
    f"The {a} of {b} is {c}." for a in ("city", "river") for b in ("Rome", "Ulm") for c in ("old", "wet")
]


def family_model(family: str) -> Model:
    return Model(decoder_config(family_config(OPTIONS, family, 300)))


def rows() -> TextBatch:
    tokenizer = make_tokenizer(OPTIONS, SENTENCES)
    return TextBatch(*pack_rows([tokenizer(text)["input_ids"] for text in SENTENCES * 3], 24))


class Stopped(Exception):
    pass


def test_training_gives_the_same_bits_twice_stopped_on_the_way_or_not(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 8:
            raise Stopped

    model, key = family_model("llama"), jax.random.key(3)
    whole = pretrain(model, rows(), PLAN, key)
    assert whole.losses[-1] < 0.85 * whole.losses[0]
    with pytest.raises(Stopped):
        pretrain(model, rows(), PLAN, key, tmp_path, stop)
    assert same_bits(pretrain(model, rows(), PLAN, key, tmp_path), whole)
    with pytest.raises(RunError, match="another training"):
        pretrain(model, rows(), PLAN, jax.random.key(4), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "opt", "qwen3", "gemma2"])
def test_a_family_config_is_what_transformers_computes(family: str, tmp_path: Path) -> None:
    import torch

    model = family_model(family)
    params = model.init(jax.random.key(1))
    make_tokenizer(OPTIONS, SENTENCES).save_pretrained(tmp_path / "tokenizer")
    config = family_config(OPTIONS, family, 300)
    folder = save_folder(tmp_path / family, params, model.config, config, source=tmp_path / "tokenizer")
    loaded = load(str(folder))
    assert loaded.tokenizer("The city of Ulm")["input_ids"]
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    ours = loaded.model.bind(loaded.params)(tokens)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(tokens)).logits.numpy()
    assert relative(ours, theirs) < 1e-5


def test_rows_begin_with_a_sentence_and_never_cut_one() -> None:
    tokens, valid = pack_rows([[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]], 5)
    assert tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert valid.all()
    with pytest.raises(ConfigError, match="rows of 2 are too short"):
        pack_rows([[1, 2, 3]], 2)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PretrainPlan(steps=0), "steps is 0"),
        (PretrainPlan(learning_rate=0.0), "learning_rate is 0.0"),
        (PretrainPlan(steps=5, warmup_steps=5), "warmup_steps is 5; it must be below steps 5"),
        (PretrainPlan(rows=10**6), "rows is 1000000, the text has"),
    ],
)
def test_settings_that_cannot_work_are_refused(plan: PretrainPlan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(family_model("llama"), rows(), plan, jax.random.key(0))
