"""The tokenizer that a GGUF describes, built with the ``tokenizers`` library and kept as tokenizer.json.

GGUF spells a tokenizer out as vocabulary, merges (or scores), token kinds and the *name* of its way of
splitting text before merging; the rule behind each name is in ``_SPLITS``. A name not there is refused:
a tokenizer that splits differently from the one the model learned with is wrong without anybody noticing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from diptych.errors import ConfigError, UnsupportedModel
from diptych.models.gguf_file import GgufFile, read_gguf

_LLAMA3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT: Final = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

_GPT2, _DIGITS = "gpt2", "digits"
_SPLITS: Final = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
}
_CONTROL, _USER_DEFINED = 3, 4
_ARRAYS: Final = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores"))


def build_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of the GGUF file ``path``. Raises UnsupportedModel for a kind that is not known here."""
    file = read_gguf(path, _ARRAYS)
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise UnsupportedModel(f"{path} has a tokenizer of kind {kind!r}; byte-level BPE and SentencePiece are read")
    kinds = list(zip(_strings(file, "tokens"), _numbers(file, "token_type"), strict=False))
    tokenizer.add_special_tokens([_whole(token, special=True) for token, k in kinds if k == _CONTROL])
    tokenizer.add_tokens([_whole(token, special=False) for token, k in kinds if k == _USER_DEFINED])
    return tokenizer


def _whole(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)


def _byte_level(file: GgufFile) -> Tokenizer:
    name = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    split = _SPLITS.get(name)
    if split is None:
        raise UnsupportedModel(f"{file.path} splits text as {name!r}; known are {', '.join(_SPLITS)}")
    vocab = {token: index for index, token in enumerate(_strings(file, "tokens"))}
    pairs = (merge.partition(" ") for merge in _strings(file, "merges"))
    merges = [(left, right) for left, _, right in pairs]
    # Llama 3 looks a whole word up before it merges; the others reach every word through merges.
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=split is _LLAMA3_SPLIT))
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (_GPT2, _DIGITS))
    if split == _GPT2:
        tokenizer.pre_tokenizer = byte_level
    else:
        first = pre_tokenizers.Digits(individual_digits=True) if split == _DIGITS else None
        rule = first or pre_tokenizers.Split(Regex(split), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([rule, byte_level])
    if split is _QWEN2_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    tokens, scores = _strings(file, "tokens"), _numbers(file, "scores")
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _merges_by_score(vocab, dict(zip(tokens, scores, strict=True)))
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=tokens[int(str(unknown))])
    )
    scheme = "first" if file.metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _merges_by_score(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """SentencePiece keeps no merges: every split of a piece into two pieces is one, the best score first."""
    merges = [
        (score, len(left), len(right), left, right)
        for piece, score in scores.items()
        for left, right in ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        if left in vocab and right in vocab
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in merges]


def _strings(file: GgufFile, name: str) -> list[str]:
    return [str(value) for value in _array(file, name)]


def _numbers(file: GgufFile, name: str) -> list[float]:
    return [float(str(value)) for value in _array(file, name)]


def _array(file: GgufFile, name: str) -> list[object]:
    values = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list):
        raise ConfigError(f"{file.path} holds no tokenizer.ggml.{name}; convert the model with its tokenizer")
    return list(values)
