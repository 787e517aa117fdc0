"""Checkpoint folders: both ways without loss, and everything wrong with them in one message."""

import json
import struct
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxedit.errors import ModelError
from jaxedit.models.tensorfiles import read_json
from jaxedit.models.weights import load_safetensors_folder, save_folder

from .conftest import Tiny, assert_bare_loads, assert_same, loaded, make, rewritten, torch_logits


def test_export_reloads_in_transformers_as_the_same_model(
    tiny: Tiny, tokens: np.ndarray, tmp_path: Path
) -> None:
    hf_config = read_json(tiny.folder / "config.json")
    folder = save_folder(tmp_path / "out", tiny.params, tiny.model.config, hf_config, source=tiny.folder)
    reloaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_array_equal(torch_logits(reloaded, tokens), torch_logits(tiny.torch, tokens))
    assert read_json(folder / "config.json") == hf_config
    texts = "The Eiffel Tower is 330 metres"
    before, after = (AutoTokenizer.from_pretrained(path)(texts) for path in (tiny.folder, folder))
    assert before["input_ids"] == after["input_ids"]
    assert_same(tiny, loaded(tiny, folder))


def test_export_in_bfloat16_says_so_and_loads(typical: Tiny, tmp_path: Path) -> None:
    hf_config = read_json(typical.folder / "config.json")
    config = typical.model.config
    save_folder(tmp_path / "out", typical.params, config, hf_config, dtype=jnp.bfloat16)
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    low = load_safetensors_folder(tmp_path / "out", config, jnp.bfloat16)
    for path, leaf in low.items():
        np.testing.assert_array_equal(leaf, typical.params[path].astype(jnp.bfloat16), err_msg=path)


def test_export_refuses_a_used_folder_and_leaves_it(typical: Tiny, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ModelError, match="not an empty folder"):
        save_folder(tmp_path, typical.params, typical.model.config, {})
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_failed_export_leaves_nothing(typical: Tiny, tmp_path: Path) -> None:
    path = typical.model.config.edited_path(1)
    broken = typical.params | {path: typical.params[path].at[0, 0].set(jnp.nan)}
    with pytest.raises(ModelError, match="NaN"):
        save_folder(tmp_path / "out", broken, typical.model.config, {})
    lacking = {name: leaf for name, leaf in typical.params.items() if name != path}
    with pytest.raises(ModelError, match=path):
        save_folder(tmp_path / "out", lacking, typical.model.config, {})
    assert not list(tmp_path.iterdir())


def test_names_without_prefix_and_legacy_buffers_load(typical: Tiny, tmp_path: Path) -> None:
    prefix = {"gpt2": "transformer.", "llama": "model."}[typical.model.config.family]
    buffers = {
        "gpt2": {
            "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
            "h.0.attn.masked_bias": np.float32([-1e4]),
        },
        "llama": {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)},
    }[typical.model.config.family]
    assert_bare_loads(typical, tmp_path, prefix, buffers)


def test_shards_load_as_one_file(typical: Tiny, tmp_path: Path) -> None:
    typical.torch.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(typical, loaded(typical, tmp_path))
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(ModelError, match=r"absent.*model-00001-of"):
        loaded(typical, tmp_path)


def test_index_may_not_leave_the_folder(typical: Tiny, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"\.\./elsewhere"):
        loaded(typical, tmp_path)


@pytest.mark.parametrize(
    ("kind", "table"), [("gpt2", "transformer.wte.weight"), ("llama-tied", "model.embed_tokens.weight")]
)
def test_tied_head_may_be_stored_but_not_differ(tmp_path: Path, kind: str, table: str) -> None:
    tied = make(kind, tmp_path)
    assert_same(tied, loaded(tied, rewritten(tied, tmp_path, lambda t: t | {"lm_head.weight": t[table]})))
    rewritten(tied, tmp_path, lambda t: t | {"lm_head.weight": t[table] + 1})
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        loaded(tied, tmp_path)


def test_bfloat16_files_load(typical: Tiny, tmp_path: Path) -> None:
    rewritten(typical, tmp_path, lambda t: {n: a.astype(ml_dtypes.bfloat16) for n, a in t.items()})
    for path, leaf in loaded(typical, tmp_path).items():
        np.testing.assert_array_equal(leaf, typical.params[path].astype(jnp.bfloat16).astype(jnp.float32))


def test_all_faults_come_in_one_error(typical: Tiny, tmp_path: Path) -> None:
    def spoil(tensors: dict) -> dict:
        names = sorted(name for name in tensors if name.endswith("weight") and ".0." in name)
        missing, shape, nan, kind, twice = names[:5]
        spoil.named = names[:5]
        tensors = tensors | {
            shape: np.zeros((3, 5), np.float32),
            nan: np.full_like(tensors[nan], np.nan),
            kind: np.zeros(tensors[kind].shape, np.int32),
            "surplus": np.zeros(2, np.float32),
            twice.split(".", 1)[1]: tensors[twice],
        }
        del tensors[missing]
        return tensors

    rewritten(typical, tmp_path, spoil)
    with pytest.raises(ModelError) as caught:
        loaded(typical, tmp_path)
    message = str(caught.value)
    missing, shape, nan, kind, twice = spoil.named
    assert f"{missing}: missing, expected shape" in message
    assert f"model.safetensors: {shape}: expected shape" in message
    assert "found (3, 5)" in message
    assert f"{nan}: " in message
    assert "NaN" in message
    assert f"{kind}: holds I32" in message
    assert "surplus: no such tensor" in message
    assert "given twice" in message
    assert twice in message
    assert "6 problem(s)" in message


HEADERS = {
    "empty": b"",
    "huge": struct.pack("<Q", 2**60) + b"{}",
    "no json": struct.pack("<Q", 4) + b"####",
    "nested": struct.pack("<Q", 10000) + b"[" * 10000,
    "negative": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
    "overflow": b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}}',
    "beyond": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_header_is_a_named_error(typical: Tiny, tmp_path: Path, case: str) -> None:
    content = HEADERS[case]
    if content.startswith(b"{"):
        content = struct.pack("<Q", len(content)) + content + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or not a safetensors file.*again"):
        loaded(typical, tmp_path)


def test_truncated_file_is_a_named_error(typical: Tiny, tmp_path: Path) -> None:
    content = (typical.folder / "model.safetensors").read_bytes()
    for size in (4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors is truncated"):
            loaded(typical, tmp_path)


def test_folder_without_safetensors_says_what_to_do(typical: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save the model as safetensors"):
        loaded(typical, tmp_path)
