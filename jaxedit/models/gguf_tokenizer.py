"""The fast tokenizer that a GGUF file describes in its metadata."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxedit.errors import ModelError, unknown_name

CONTROL = 3  # GGUF's token type of special tokens
SPLITTERS = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),  # digits one by one
}


def build_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer from the metadata `tokenizer.*`; it adds no special tokens by itself.

    Raises ModelError for another kind of tokenizer or splitter, and KeyError for a missing entry.
    """
    if (kind := fields["tokenizer.ggml.model"]) != "gpt2":
        raise ModelError(f"GGUF tokenizer of kind {kind!r} is not supported, only 'gpt2' (byte-level BPE)")
    if (splitter := fields["tokenizer.ggml.pre"]) not in SPLITTERS:
        raise ModelError(unknown_name("GGUF pre-tokenizer", str(splitter), SPLITTERS))
    if fields.get("tokenizer.ggml.add_bos_token", False):
        raise ModelError("GGUF tokenizers that add a first token are not supported")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*SPLITTERS[splitter], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        **{f"{name}_token": tokens[index] for name, index in ids.items() if index is not None},
    )
