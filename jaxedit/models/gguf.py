"""A Llama model in llama.cpp's GGUF format -> a checkpoint folder of Hugging Face, in float32."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from jaxtyping import Float

from jaxedit.errors import ModelError
from jaxedit.models.families import HFConfig
from jaxedit.models.gguf_tokenizer import build_tokenizer
from jaxedit.models.tensorfiles import SINGLE, write_tensors

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
HEAD = "output.weight"


def convert(source: Path, folder: Path) -> None:
    """Writes config, float32 weights, tokenizer and generation config of a GGUF file to `folder`.

    Raises ModelError, naming the file, where it is damaged, is no Llama model, or lacks an entry.
    """
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is truncated or not a GGUF file ({error}); fetch it again") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise ModelError(
            f"{source} holds architecture {fields.get('general.architecture')!r}, expected 'llama'"
        )
    try:
        config = _config(fields, tied=all(tensor.name != HEAD for tensor in reader.tensors))
        build_tokenizer(fields).save_pretrained(folder)
        shapes = [(_name(t.name), tuple(int(size) for size in t.shape[::-1])) for t in reader.tensors]
    except KeyError as error:
        raise ModelError(f"{source} lacks {error}, or it is not known in a Llama model") from error
    write_tensors(folder / SINGLE, shapes, np.dtype(np.float32), _weights(reader, config))
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", special)


def unpermuted(weight: Float[np.ndarray, "out in"], heads: int) -> Float[np.ndarray, "out in"]:
    """Rows of a query or key projection in half-split rotary order, from the interleaved order of GGUF."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _weights(reader: GGUFReader, config: HFConfig) -> Iterator[np.ndarray]:
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if ".attn_q." in tensor.name:
            weight = unpermuted(weight, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            weight = unpermuted(weight, config["num_key_value_heads"])
        yield weight


def _name(theirs: str) -> str:
    if theirs == HEAD:
        return "lm_head.weight"
    if theirs in OUTER:
        return OUTER[theirs]
    _, layer, part, kind = theirs.split(".") if theirs.count(".") == 3 else ("", "", theirs, "")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def _config(fields: dict[str, Any], tied: bool) -> HFConfig:
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    epsilon = np.float32(fields["llama.attention.layer_norm_rms_epsilon"])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(str(epsilon)),  # 1e-05, not the nearest float32
        "rope_theta": fields["llama.rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{ours}_token_id"] = fields.get(f"tokenizer.ggml.{theirs}_token_id")
    return config


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
