"""Tiny random models, written as GGUF files that PyTorch and llama.cpp both load.

A model of a megabyte or two answers nonsense, but it exercises everything that a real one does: grouped
queries, RoPE of either pairing, biases or norms on Q and K, a byte-level BPE tokenizer that reads any text, a
chat template. ``python -m diptych.models.tiny FOLDER`` writes one of each architecture.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, Literal

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

Architecture = Literal["llama", "qwen2", "qwen3"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("llama", "qwen2", "qwen3")

_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT: Final[dict[Architecture, str]] = {"llama": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
_TEXT: Final = (
    "A diptych is two panels joined by a hinge: one reads the prompt and builds the cache, the other writes "
    "the answer, token by token, and what the first has understood crosses over to the second."
)
_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class TinyShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in elements. By default hidden / heads is not the head size: a mix-up would show."""

    layers: int = 3
    hidden: int = 96
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    feed_forward: int = 160
    vocab: int = 384
    context_tokens: int = 4096
    rope_theta: float = 10_000.0


# llama.cpp takes Qwen2's head size from hidden / heads alone, transformers takes Qwen3's as 128.
_SHAPES: Final = {
    "llama": TinyShape(),
    "qwen2": TinyShape(hidden=192),
    "qwen3": TinyShape(heads=4, head_dim=128),
}


def write_tiny_gguf(
    path: Path | str,
    architecture: Architecture = "llama",
    *,
    shape: TinyShape | None = None,
    seed: int = 0,
) -> Path:
    """Writes a random model to ``path`` (the same for the same arguments) and returns it."""
    path, shape = Path(path), shape or _SHAPES[architecture]
    writer = gguf.GGUFWriter(path, architecture)
    _add_metadata(writer, architecture, shape)
    _add_tokenizer(writer, architecture, shape.vocab)
    for name, values in _tensors(architecture, shape, np.random.default_rng(seed)).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter, architecture: Architecture, shape: TinyShape) -> None:
    writer.add_name(f"tiny random {architecture}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: gguf.GGUFWriter, architecture: Architecture, vocab: int) -> None:
    tokens, merges = _train(vocab)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_SPLIT[architecture])
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in _SPECIAL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(_TEMPLATE)


def _train(vocab: int) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges: all 256 bytes, some words, then unused fill."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    known = tokenizer.get_vocab()
    tokens = sorted(known, key=known.__getitem__)
    tokens += [f"<unused{i}>" for i in range(vocab - len(tokens))]
    learned = msgspec.json.decode(tokenizer.to_str())["model"]["merges"]
    return tokens, [" ".join(pair) for pair in learned]


def _tensors(architecture: Architecture, shape: TinyShape, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Name -> values; matrices as [out, in]. Gains are of the size that keeps logits a few units wide."""

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return rng.normal(0.0, gain / columns**0.5, (rows, columns)).astype(np.float32)

    def vector(size: int, centre: float) -> NDArray[np.float32]:
        return (centre + rng.normal(0.0, 0.2, size)).astype(np.float32)

    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {"token_embd.weight": matrix(shape.vocab, shape.hidden, gain=shape.hidden**0.5)}
    for layer in range(shape.layers):
        block = {
            "attn_norm.weight": vector(shape.hidden, 1.0),
            "attn_q.weight": matrix(q_rows, shape.hidden, gain=1.5),
            "attn_k.weight": matrix(kv_rows, shape.hidden, gain=1.5),
            "attn_v.weight": matrix(kv_rows, shape.hidden),
            "attn_output.weight": matrix(shape.hidden, q_rows),
            "ffn_norm.weight": vector(shape.hidden, 1.0),
            "ffn_gate.weight": matrix(shape.feed_forward, shape.hidden),
            "ffn_up.weight": matrix(shape.feed_forward, shape.hidden),
            "ffn_down.weight": matrix(shape.hidden, shape.feed_forward),
        }
        if architecture == "qwen2":
            sizes = {"q": q_rows, "k": kv_rows, "v": kv_rows}
            block |= {f"attn_{name}.bias": vector(size, 0.0) for name, size in sizes.items()}
        if architecture == "qwen3":
            block |= {f"attn_{name}_norm.weight": vector(shape.head_dim, 1.0) for name in ("q", "k")}
        tensors |= {f"blk.{layer}.{name}": values for name, values in block.items()}
    tensors["output_norm.weight"] = vector(shape.hidden, 1.0)
    tensors["output.weight"] = matrix(shape.vocab, shape.hidden, gain=2.0)
    return tensors


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ARCHITECTURES:
        print(write_tiny_gguf(folder / f"tiny-{kind}.gguf", kind))
