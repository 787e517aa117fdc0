"""Small decoders of several families that know the facts of `world`: the same text, size and steps for all.

    python -m experiments.small_models [--families llama gpt2 ...] [--out runs/small]

Each is a Hugging Face folder OUT/FAMILY that any command takes as --model. Beside them lie what the experiments ask:
OUT/facts.jsonl (to edit), OUT/controls.jsonl (never edited), OUT/held-out.txt (sentences about subjects of no fact to
edit, in wordings that were not learned of them) and OUT/corpus.txt (what was learned). A stopped training goes on.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxedit.compiling import set_up_compiling
from jaxedit.data import Fact, dump_jsonl
from jaxedit.data.world import world_facts, world_items
from jaxedit.data.world_items import Item
from jaxedit.data.world_templates import RELATIONS
from jaxedit.models.families import HFConfig, decoder_config
from jaxedit.models.model import Model
from jaxedit.models.sources import load
from jaxedit.models.weights import save_folder
from jaxedit.pipeline import known_facts
from jaxedit.training.pretrain import PretrainPlan, pack_rows, pretrain
from jaxedit.types import TextBatch

POSITIONS = 128
LLAMA_LIKE = {
    "hidden_act": "silu",
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}


@dataclasses.dataclass(frozen=True)
class SmallModels:
    """What to train."""

    out: Path = Path("runs/small")
    families: tuple[str, ...] = ("llama", "gpt2", "gptj", "gpt_neox", "qwen3", "gemma2")
    relations: tuple[str, ...] = (
        "us_city_state",
        "city_continent",
        "city_language",
        "city_currency",
        "country_continent",
        "language_script",
        "word_meaning",
    )
    controls: int = 200
    """Facts that no experiment edits."""
    vocabulary: int = 1024
    layers: int = 4
    width: int = 128
    mlp: int = 1024
    """Width of the MLPs, the length of the keys that editors write to."""
    heads: int = 4
    row: int = 64
    """Tokens of a row of text."""
    passes: int = 8
    """Orders in which the sentences are packed into rows."""
    plan: PretrainPlan = dataclasses.field(default_factory=lambda: PretrainPlan(steps=1200))
    seed: int = 0


class Corpus(NamedTuple):
    """What there is to learn and to ask."""

    learned: list[str]
    held_out: list[str]
    facts: list[Fact]
    controls: list[Fact]


def main(options: SmallModels) -> None:
    console = Console(stderr=True)
    set_up_compiling()
    corpus = make_corpus(options)
    write_corpus(options, corpus)
    tokenizer = make_tokenizer(options, corpus.learned)
    rows = make_rows(options, corpus.learned, tokenizer)
    for family in options.families:
        if not (options.out / family).exists():
            record = make_model(options, family, rows, tokenizer, corpus, console)
            console.print(f"{family}: {record}", highlight=False)


def make_corpus(options: SmallModels) -> Corpus:
    """Sentences about every subject, four of six wordings, to learn; one more of those that no fact to edit is about,
    which an edit that works would make untrue; the facts to edit, and those that never are."""
    rng = np.random.default_rng(options.seed)
    learned, kept = [], []
    items = world_items()
    for relation in options.relations:
        wordings = (*RELATIONS[relation].prompts, *RELATIONS[relation].paraphrases)
        for item in items[relation]:
            order = rng.permutation(len(wordings))
            learned += [sentence(wordings[i], item) for i in order[:-2]]
            kept.append((item.subject, sentence(wordings[order[-1]], item)))
    facts = [fact for fact in world_facts(options.seed) if fact.relation in options.relations]
    chosen = [facts[i] for i in rng.permutation(len(facts))]
    controls, edited = chosen[: options.controls], chosen[options.controls :]
    subjects = {fact.subject for fact in edited}
    drawn = (kept[i] for i in rng.permutation(len(kept)))
    return Corpus(learned, [text for subject, text in drawn if subject not in subjects], edited, controls)


def sentence(wording: str, item: Item) -> str:
    """A true sentence."""
    return f"{wording.replace('{}', item.shown or item.subject)} {item.object}."


def write_corpus(options: SmallModels, corpus: Corpus) -> None:
    """The files beside the models."""
    options.out.mkdir(parents=True, exist_ok=True)
    dump_jsonl(corpus.facts, options.out / "facts.jsonl")
    dump_jsonl(corpus.controls, options.out / "controls.jsonl")
    (options.out / "held-out.txt").write_text("\n".join(corpus.held_out) + "\n")
    (options.out / "corpus.txt").write_text("\n".join(corpus.learned) + "\n")


def make_tokenizer(options: SmallModels, sentences: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of these sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_rows(options: SmallModels, sentences: list[str], tokenizer: PreTrainedTokenizerFast) -> TextBatch:
    """Rows of text: all sentences, in `passes` orders."""
    encoded = tokenizer([f"{text}\n" for text in sentences], add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(options.seed)
    orders = np.concatenate([rng.permutation(len(encoded)) for _ in range(options.passes)])
    tokens, valid = pack_rows([encoded[i] for i in orders], options.row)
    return TextBatch(jnp.asarray(tokens), jnp.asarray(valid))


def make_model(
    options: SmallModels,
    family: str,
    rows: TextBatch,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    console: Console,
) -> dict[str, Any]:
    """Trains one model and writes its folder; the record of it."""
    config = family_config(options, family, len(tokenizer))
    model = Model(decoder_config(config))
    begun = time.process_time()

    def report(stage: str, done: int, total: int) -> None:
        console.print(f"{family}: {stage}, {done} of {total}", highlight=False)

    training = options.out / f"{family}.training"
    found = pretrain(model, rows, options.plan, jax.random.key(options.seed), training, report)
    source = options.out / "tokenizer"
    tokenizer.save_pretrained(source)
    folder = save_folder(options.out / family, found.params, model.config, config, source=source)
    loaded = load(str(folder))
    known = {
        name: len(known_facts(facts, len(facts), loaded)) / len(facts)
        for name, facts in (("facts", corpus.facts), ("controls", corpus.controls))
    }
    record = {
        "parameters": sum(int(np.prod(shape)) for shape in model.shapes.values()),
        "loss": float(np.mean(found.losses[-50:])),
        "known": known,
        "cpu_seconds": time.process_time() - begun,
    }
    (options.out / f"{family}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def family_config(options: SmallModels, family: str, vocabulary: int) -> HFConfig:
    """A `config.json` of the family at the common size."""
    d, heads, layers = options.width, options.heads, options.layers
    tokens = {"model_type": family, "vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 1}
    llama = tokens | {
        "hidden_size": d,
        "intermediate_size": options.mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        **LLAMA_LIKE,
    }
    gpt = {"n_positions": POSITIONS, "n_embd": d, "n_layer": layers, "n_head": heads, "n_inner": options.mlp}
    gemma = {
        "head_dim": d // heads,
        "query_pre_attn_scalar": d // heads,
        "sliding_window": POSITIONS,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    configs: dict[str, HFConfig] = {
        "gpt2": tokens | gpt,
        "gptj": tokens | gpt | {"rotary_dim": d // heads // 2, "tie_word_embeddings": False},
        "gpt_neox": llama | {"hidden_act": "gelu", "use_parallel_residual": True, "rotary_pct": 0.25},
        "opt": tokens
        | {
            "hidden_size": d,
            "ffn_dim": options.mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": d,
        },
        "qwen3": llama | {"head_dim": d // heads},
        "gemma2": llama | gemma | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        "gemma3_text": llama | gemma,
    }
    return configs.get(family, llama)


if __name__ == "__main__":
    main(tyro.cli(SmallModels, description=__doc__))
