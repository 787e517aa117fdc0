"""Small tokenizers with the pipelines that the families publish, as the files of a checkpoint's folder.

Normaliser, pre-tokeniser, model options, post-processor, decoder, special tokens and the class named in
`tokenizer_config.json` are those of the published files; merges are learnt from `TRAINING`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TRAINING = (
    "The mother tongue of Danielle Darrieux is French. The city of Lyon is in France. What is it (in 1990)?",
    "The capital of France is Paris; the firm AT&T, Inc. is in São Paulo. It's called \"Lyon\", isn't it?",
    "Москва находится в России. Где Москва? 東京は日本の首都です。 Łódź is in Poland, and Beirut is not.",
    "It happened in the mid-1990s when 2024 was far away. The emoji means a party in the Ivory Coast!",
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE = "▁"


class Published(NamedTuple):
    """What a family publishes: the file, what stands beside it, and how many special tokens open a text."""

    build: Callable[[], Tokenizer]
    model_type: str
    config: dict[str, Any]
    leading: int = 0
    json: bool = True  # else vocab.json and merges.txt alone

    def save(self, folder: Path) -> Tokenizer:
        """Writes the files as they are found on the hub; gives the tokenizer that they describe."""
        tokenizer = self.build()
        (folder / "config.json").write_text(json.dumps({"model_type": self.model_type}))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config))
        if self.json:
            tokenizer.save(str(folder / "tokenizer.json"))
        else:
            tokenizer.model.save(str(folder))
        return tokenizer


@functools.cache
def _learnt(level: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, over bytes or over characters with the space as a letter."""
    tokenizer = Tokenizer(models.BPE())
    if level == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _byte_level(split: str | None = None, normal: Any = None, special: tuple[str, ...] = (), **options: Any):
    """BPE over bytes: GPT-2's own split, or a regular expression before it."""
    words, merges = _learnt("bytes")
    vocab = {token: i for i, token in enumerate([*words, *(s for s in special if s not in words)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, **options))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = (
        level
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    )
    if normal is not None:
        tokenizer.normalizer = normal
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def _sentencepiece(special: tuple[str, ...]) -> Tokenizer:
    """BPE over characters, unknown ones as bytes; no pipeline yet."""
    words, merges = _learnt("characters")
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *words]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def _opened(tokenizer: Tokenizer, bos: str | None) -> processors.TemplateProcessing:
    if bos is None:
        return processors.TemplateProcessing(single="$A", special_tokens=[])
    return processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _llama2(bos: str | None = "<s>", metaspace: bool = False) -> Tokenizer:
    tokenizer = _sentencepiece(("<unk>", "<s>", "</s>"))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        tokenizer.normalizer = normalizers.Sequence(steps)
    plain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = _opened(tokenizer, bos)
    return tokenizer


def _phi3() -> Tokenizer:
    tokenizer = _llama2(bos=None)
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])
    return tokenizer


def _gemma() -> Tokenizer:
    tokenizer = _sentencepiece(("<pad>", "<eos>", "<bos>", "<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = _opened(tokenizer, "<bos>")
    return tokenizer


def _neox() -> Tokenizer:
    tokenizer = _byte_level(normal=normalizers.NFC(), special=("<|endoftext|>", "<|padding|>"))
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tokenizer.post_processor = _opened(tokenizer, None)
    return tokenizer


def _opt() -> Tokenizer:
    tokenizer = _byte_level(special=("</s>", "<pad>"))
    tokenizer.post_processor = _opened(tokenizer, "</s>")
    return tokenizer


def _llama3() -> Tokenizer:
    special = ("<|begin_of_text|>", "<|end_of_text|>")
    tokenizer = _byte_level(WORDS % r"\p{N}{1,3}", special=special, ignore_merges=True)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _opened(tokenizer, special[0])]
    )
    return tokenizer


def _config(name: str, bos: str | None, eos: str, **more: Any) -> dict[str, Any]:
    return {
        "tokenizer_class": name,
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        **more,
    }


END, SENTENCE = "<|endoftext|>", {"unk_token": "<unk>", "legacy": False}
GPT2 = Published(lambda: _byte_level(special=(END,)), "gpt2", _config("GPT2Tokenizer", END, END))
QWEN2 = Published(
    lambda: _byte_level(WORDS % r"\p{N}", normalizers.NFC(), (END,)),
    "qwen2",
    _config("Qwen2Tokenizer", None, END),
)
GEMMA = Published(_gemma, "gemma2", _config("GemmaTokenizer", "<bos>", "<eos>", unk_token="<unk>"), 1)
LLAMA2 = _config("LlamaTokenizer", "<s>", "</s>", **SENTENCE)
PUBLISHED = {
    "gpt2": GPT2,
    "gptj": GPT2._replace(model_type="gptj"),
    "gpt_neox": Published(_neox, "gpt_neox", _config("GPTNeoXTokenizer", END, END)),
    "opt": Published(
        _opt,
        "opt",
        _config("GPT2Tokenizer", "</s>", "</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True),
        1,
        json=False,
    ),
    "llama-2": Published(_llama2, "llama", LLAMA2 | {"add_bos_token": True, "add_eos_token": False}, 1),
    "llama-3": Published(
        _llama3, "llama", _config("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|end_of_text|>"), 1
    ),
    "mistral-v0.1": Published(_llama2, "mistral", LLAMA2, 1),
    "mistral-v0.3": Published(
        lambda: _llama2(metaspace=True), "mistral", LLAMA2 | {"add_prefix_space": None}, 1
    ),
    "phi3": Published(_phi3, "phi3", LLAMA2 | {"add_bos_token": False, "add_eos_token": False}),
    "qwen2": QWEN2,
    "qwen3": QWEN2._replace(model_type="qwen3"),
    "gemma2": GEMMA,
    "gemma3": GEMMA._replace(model_type="gemma3_text"),
    "olmo2": Published(
        lambda: _byte_level(WORDS % r"\p{N}{1,3}", special=(END,)),
        "olmo2",
        _config("GPT2Tokenizer", END, END),
    ),
}
