"""What a model's GGUF says about it: geometry, RoPE, tokens that end a turn, chat template.

Everything comes from the file's own metadata; nothing here knows a particular model. RoPE pairing is the one
fact that GGUF leaves to the architecture: the converter permutes Q and K of ``llama`` so that neighbouring
dimensions rotate together, while the Qwen family keeps Hugging Face's order, where dimension j rotates with
j + head_dim / 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from diptych.errors import ConfigError, UnsupportedModel
from diptych.models.gguf_file import GgufFile, Value, read_gguf

Pairing = Literal["interleaved", "half"]

PAIRING: Final[dict[str, Pairing]] = {"llama": "interleaved", "qwen2": "half", "qwen3": "half"}
"""The architectures that are served, each with the RoPE pairing of its GGUF files."""

# Control tokens with these spellings end a turn wherever they occur; llama.cpp stops at the same ones.
_TURN_ENDS: Final = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"}
    | {"<end_of_turn>", "<EOT>", "</s>"}
)
_END_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
_CONTROL = 3


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """The model's shape. Sizes in elements; ``rope_scale`` divides positions (linear scaling, 1 for none)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim_k: int
    head_dim_v: int
    feed_forward: int
    vocab: int
    context_tokens: int
    norm_eps: float
    rope_theta: float
    rope_scale: float
    rope_pairing: Pairing

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """Bytes of keys and values that one token adds over all layers."""
        return self.layers * self.kv_heads * (self.head_dim_k + self.head_dim_v) * element_bytes


class ModelMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF's metadata, read. Token ids are None where the file names none."""

    architecture: str
    name: str
    geometry: Geometry
    chat_template: str | None
    end_tokens: tuple[int, ...]
    bos_token: int | None
    eos_token: int | None


def read_meta(path: Path | str) -> ModelMeta:
    """Reads ``path``. Raises ConfigError for a bad file, UnsupportedModel for one that is not served."""
    file = read_gguf(path, ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"))
    architecture = _architecture(file)
    metadata = file.metadata
    template = metadata.get("tokenizer.chat_template")
    return ModelMeta(
        architecture=architecture,
        name=str(metadata.get("general.name") or Path(file.path).stem),
        geometry=_geometry(file, architecture),
        chat_template=None if template is None else str(template),
        end_tokens=_end_tokens(metadata),
        bos_token=_token(metadata, "bos_token_id"),
        eos_token=_token(metadata, "eos_token_id"),
    )


def _architecture(file: GgufFile) -> str:
    architecture = str(file.metadata.get("general.architecture"))
    if architecture not in PAIRING:
        served = ", ".join(PAIRING)
        raise UnsupportedModel(f"{file.path} is of architecture {architecture!r}; served are {served}")
    if _number(file, f"{architecture}.expert_count", 0) > 0:
        raise UnsupportedModel(f"{file.path} is a mixture of experts; dense models are served")
    return architecture


def _geometry(file: GgufFile, architecture: str) -> Geometry:
    def number(key: str, default: float | None = None) -> int:
        return int(_number(file, f"{architecture}.{key}", default))

    heads, hidden = number("attention.head_count"), number("embedding_length")
    head_dim_k = number("attention.key_length", hidden // heads)
    vocab = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    geometry = Geometry(
        layers=number("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim_k=head_dim_k,
        head_dim_v=number("attention.value_length", hidden // heads),
        feed_forward=number("feed_forward_length"),
        vocab=vocab,
        context_tokens=number("context_length"),
        norm_eps=_number(file, f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=_number(file, f"{architecture}.rope.freq_base", 10_000.0),
        rope_scale=_rope_scale(file, architecture),
        rope_pairing=PAIRING[architecture],
    )
    if number("rope.dimension_count", head_dim_k) != head_dim_k:
        raise UnsupportedModel(f"{file.path} rotates only a part of each head; whole heads are served")
    return geometry


def _rope_scale(file: GgufFile, architecture: str) -> float:
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "none":
        return 1.0
    if kind == "linear":
        return _number(file, f"{architecture}.rope.scaling.factor", 1.0)
    raise UnsupportedModel(f"{file.path} has RoPE scaling {kind!r}; none and linear are served")


def _number(file: GgufFile, key: str, default: float | None = None) -> float:
    if key in file.array_lengths:
        raise UnsupportedModel(f"{file.path}: metadata {key} lists a value per layer; equal layers are served")
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnsupportedModel(f"{file.path}: metadata {key} is missing or no number")
    return value


def _token(metadata: dict[str, Value], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, int) else None


def _end_tokens(metadata: dict[str, Value]) -> tuple[int, ...]:
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list):
        raise ConfigError("the GGUF file holds no tokenizer; convert the model with its vocabulary")
    named = {token for key in _END_KEYS if (token := _token(metadata, key)) is not None}
    if isinstance(kinds, list):
        pairs = enumerate(zip(tokens, kinds, strict=False))
        named |= {i for i, (token, kind) in pairs if kind == _CONTROL and token in _TURN_ENDS}
    return tuple(sorted(named))
