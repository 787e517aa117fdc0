"""Targets: what users give: facts, configurations, model folders."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from jaxedit.configs import build, read_toml
from jaxedit.data import counterfact, dump_jsonl, knowedit, load_facts, records, zsre
from jaxedit.data.facts import Fact
from jaxedit.editors import method
from jaxedit.errors import JaxeditError
from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import decoder_config
from jaxedit.models.model import Model
from jaxedit.models.sources import fingerprint
from jaxedit.models.tensorfiles import INDEX, SINGLE, read_json
from jaxedit.models.weights import load_safetensors_folder, save_folder
from jaxedit.pipeline import RunConfig, check, config_from, run_key
from tests.fuzz.harness import Target
from tests.fuzz.mutations import VALUES, contents, documents, json_files

ORIGINAL = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "{} lies in", "relation_id": "P1", "subject": "Paris", "target_new": {"str": "Italy"},
        "target_true": {"str": "France"},
    },
    "paraphrase_prompts": ["Where is Paris? In"], "neighborhood_prompts": ["Lyon lies in"],
    "generation_prompts": ["Paris is"],
}  # fmt: skip
FLAT = {
    "case_id": 1, "subject": "Paris", "prompt": "Paris lies in", "target_new": "Italy", "ground_truth": "France",
    "rephrase_prompt": "Where is Paris? In", "locality_prompt": "Lyon lies in", "locality_ground_truth": "France",
}  # fmt: skip
ZSRE = {
    "subject": "Paris", "src": "Where is Paris?", "alt": "Italy", "answers": ["France"],
    "rephrase": "Paris is where?", "loc": "Where is Lyon?", "loc_ans": "France",
}  # fmt: skip
KNOWEDIT = {
    "subject": "Paris", "prompt": "Where is Paris?", "target_new": "Italy", "ground_truth": ["France"],
    "rephrase_prompt": "Paris is where?",
    "locality": {"near": [{"prompt": "Where is Lyon?", "ground_truth": ["France"]}]},
}  # fmt: skip
OWN: dict[str, Any] = {
    "id": "a", "subject": "Paris", "prompt": "Paris lies in", "target_new": "Italy", "target_true": "France",
    "paraphrases": ["Where is Paris? In"], "neighborhood": ["Lyon lies in"],
}  # fmt: skip
LOADERS = {"original": counterfact, "flat": counterfact, "zsre": zsre, "knowedit": knowedit}
RECORDS: dict[str, dict[str, Any]] = {"original": ORIGINAL, "flat": FLAT, "zsre": ZSRE, "knowedit": KNOWEDIT}


def run_facts(place: Path, case: tuple[str, bytes, bool]) -> None:
    """What loads can be written again, and is read back equal."""
    name, content, skip = case
    file = place / ("facts.jsonl" if name == "jsonl" else "facts.json")
    file.write_bytes(content)
    loader = LOADERS.get(name, records)
    facts = loader.load(file, skip_invalid=skip)
    _same_again(place, facts)
    _same_again(place, load_facts(file, skip_invalid=skip))


def _same_again(place: Path, facts: list[Fact]) -> None:
    dump_jsonl(facts, place / "again.jsonl")
    assert load_facts(place / "again.jsonl") == facts


def run_templates(place: Path, content: bytes) -> None:
    """The file that `rebuild_neighborhood` reads."""
    file = place / "templates.json"
    file.write_bytes(content)
    facts = [
        Fact("0", "Paris", "Paris lies in", "Italy", "France"),
        Fact("1", "Lyon", "Lyon is in", "Italy", "France"),
    ]
    counterfact.rebuild_neighborhood(facts, file)


FACT_FILES = st.one_of(
    *(
        st.tuples(st.just(name), json_files([good, good | {"case_id": 7}]), st.booleans())
        for name, good in RECORDS.items()
    ),
    st.tuples(
        st.just("jsonl"),
        st.lists(documents(OWN).map(lambda v: json.dumps(v).encode()), max_size=3).map(b"\n".join)
        | contents(json.dumps(OWN).encode() + b"\n"),
        st.booleans(),
    ),
)  # fmt: skip
TEMPLATES = json_files({"0": ["P1", "{} lies in"], "1": ["P1", "{} is in"], "2": None})

SETTINGS: dict[str, Any] = {
    "model": "smollm2-135m", "editor": "memit", "count": 3, "chunk": 2, "batch_size": 1, "seed": 0,
    "dtype": "float32", "score": True,
    "known": False, "facts": "world", "out": "runs/x",
    "settings": {"layers": [1, 2], "steps": 2, "lam": 3.0, "memory": True, "clamp": 0.5, "centre": "edit"},
    "moments": {"length": 32, "tokens": 100, "text": "a.txt", "cache": True},
    "limits": {"policy": "skip", "edit": 0.5, "total": 2},
}  # fmt: skip
TOML = b"""
editor = "ft"
count = 3
chunk = 2
known = false
[settings]
steps = 2
layers = [1, 2]
learning_rate = 5e-4
[limits]
policy = "skip"
edit = 0.5
[moments]
length = 32
"""
TINY = DecoderConfig(
    "llama", 32, 8, 12, 4, 2, 2, 4, 16, "rms", 1e-6, "rope", "silu", True, False, False, False, False
)


def run_config(place: Path, case: Any) -> None:
    """From a file or plain data to an editor's own settings."""
    if isinstance(case, bytes):
        (place / "run.toml").write_bytes(case)
        config = build(RunConfig, read_toml(place / "run.toml"), "run.toml")
    else:
        config = config_from(case)
    check(config)
    run_key(config, "contexts")
    hash(method(config.editor).configure(TINY, config.settings))


CONFIGS = documents(SETTINGS) | contents(TOML) | st.binary(max_size=40)

HF_CONFIG = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8},
}  # fmt: skip
GPT2_CONFIG = {
    "model_type": "gpt2", "vocab_size": 32, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 12
}  # fmt: skip
GEMMA_CONFIG = {
    "model_type": "gemma3_text", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "sliding_window": 4,
    "final_logit_softcapping": 3.0, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_theta": 100.0}},
}  # fmt: skip
NEOX_CONFIG = {
    "model_type": "gpt_neox", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": False,
}  # fmt: skip
MODEL_CONFIGS = (HF_CONFIG, GPT2_CONFIG, GEMMA_CONFIG, NEOX_CONFIG)
CONFIGS_OF_MODELS = st.one_of([json_files(config) for config in MODEL_CONFIGS])


def run_model_config(place: Path, content: bytes) -> None:
    """A config.json: from the file to the shapes of all parameters."""
    (place / "config.json").write_bytes(content)
    config = decoder_config(read_json(place / "config.json"))
    assert Model(config).shapes
    hash(config)


def good_header() -> tuple[dict[str, Any], bytes]:
    """Header and data of the model of `HF_CONFIG`."""
    config = decoder_config(HF_CONFIG)
    from tempfile import TemporaryDirectory

    rng = np.random.default_rng(0)
    flat: dict[str, Any] = {
        path: rng.normal(size=shape).astype(np.float32) for path, shape in Model(config).shapes.items()
    }
    with TemporaryDirectory() as folder:
        content = (save_folder(Path(folder) / "model", flat, config, HF_CONFIG) / SINGLE).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


HEADER, DATA = good_header()


def tensor_file(header: Any, data: bytes = DATA) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def run_weights(place: Path, case: tuple[bytes, Any]) -> None:
    """A model folder with one weight file, and sometimes an index."""
    content, index = case
    shutil.rmtree(place / "model", ignore_errors=True)
    (place / "model").mkdir()
    name = SINGLE if index is None else "model-1.safetensors"
    (place / "model" / name).write_bytes(content)
    if index is not None:
        (place / "model" / INDEX).write_text(json.dumps(index))
    try:
        params = load_safetensors_folder(place / "model", decoder_config(HF_CONFIG))
        assert all(np.isfinite(np.asarray(array)).all() for array in params.values())
    finally:
        try:
            fingerprint(place / "model")
        except JaxeditError:
            assert index is not None


ENTRY = next(name for name in HEADER if name != "__metadata__")
SIZES = st.sampled_from([0, -1, 1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, 1.5, None, "8"])
HOSTILE_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "X", "", None]),
        "shape": st.lists(SIZES, max_size=4) | VALUES,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | VALUES,
    }
)
HEADERS = documents(HEADER) | HOSTILE_ENTRIES.map(lambda entry: HEADER | {ENTRY: entry})
INDEXES = st.none() | documents({"metadata": {}, "weight_map": dict.fromkeys(HEADER, "model-1.safetensors")})
WEIGHTS = st.tuples(
    HEADERS.map(tensor_file) | contents(tensor_file(HEADER)) | st.binary(max_size=64), INDEXES
)

TARGETS = {
    "fact files": Target(FACT_FILES, run_facts, 30),
    "fact templates": Target(TEMPLATES, run_templates, 5),
    "run configurations": Target(CONFIGS, run_config, 20),
    "model configurations": Target(CONFIGS_OF_MODELS, run_model_config, 8),
    "weight files": Target(WEIGHTS, run_weights, 12),
}
