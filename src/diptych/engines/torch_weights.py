"""A decoder's weights as PyTorch tensors, read from a GGUF file or a Hugging Face folder.

Quantised tensors are unpacked a layer at a time: the peak is the model plus a layer or two. Q and K end up in
Hugging Face's half-rotated order whatever the file's own pairing is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from diptych.errors import ConfigError, UnsupportedModel
from diptych.models.gguf_file import TensorInfo, read_gguf
from diptych.models.gguf_meta import Geometry
from diptych.models.resolve import ModelBundle

_UNPACKED_AT_ONCE: Final = 1 << 17
_SIMPLE_BLOCKS: Final = {
    GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
}

Source = Callable[[str], torch.Tensor | None]
"""A tensor by its GGUF name, in Hugging Face's order of rows; None where the model has none of that name."""


@dataclass(frozen=True)
class LayerWeights:
    """One block. ``qkv`` stacks the rows of Q, K and V, ``gate_up`` those of gate and up; all [out, in]."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: torch.Tensor
    ffn_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """The whole model. ``inverse_frequencies`` is float32 [head_dim / 2]; ``head`` may be the embedding."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor
    inverse_frequencies: torch.Tensor

    @property
    def bytes(self) -> int:
        """Bytes held, shared storage counted once."""
        tensors = [self.embedding, self.norm, self.head]
        tensors += [t for layer in self.layers for t in vars(layer).values() if t is not None]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def load_weights(bundle: ModelBundle, dtype: torch.dtype, device: str) -> DecoderWeights:
    """Reads the weights of ``bundle``. Raises ConfigError or UnsupportedModel."""
    geometry = bundle.geometry
    gguf = _gguf_source(bundle.gguf, geometry, dtype)
    source = gguf if bundle.hf is None else _folder_source(Path(bundle.hf))
    build = _Builder(source, dtype, device)
    with _one_thread():
        embedding, head = build.tensor("token_embd.weight"), build.optional("output.weight")
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(build.layer(f"blk.{index}.") for index in range(geometry.layers)),
            norm=build.tensor("output_norm.weight"),
            head=embedding if head is None else head,
            inverse_frequencies=_inverse_frequencies(geometry, gguf("rope_freqs.weight")).to(device),
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pieces are small: a second thread would only wait at barriers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inverse_frequencies(geometry: Geometry, factors: torch.Tensor | None) -> torch.Tensor:
    """theta^(-2i / d), divided by the file's long-context factors where it has any (Llama 3.1 and later)."""
    dims = geometry.head_dim_k
    frequencies = geometry.rope_theta ** -(torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    if factors is not None:
        frequencies = frequencies / factors
    return frequencies / geometry.rope_scale


class _Builder:
    def __init__(self, source: Source, dtype: torch.dtype, device: str) -> None:
        self.source, self.dtype, self.device = source, dtype, device

    def layer(self, prefix: str) -> LayerWeights:
        def name(*parts: str) -> tuple[str, ...]:
            return tuple(f"{prefix}{part}" for part in parts)

        return LayerWeights(
            attention_norm=self.tensor(*name("attn_norm.weight")),
            qkv=self.tensor(*name("attn_q.weight", "attn_k.weight", "attn_v.weight")),
            qkv_bias=self.optional(*name("attn_q.bias", "attn_k.bias", "attn_v.bias")),
            q_norm=self.optional(*name("attn_q_norm.weight")),
            k_norm=self.optional(*name("attn_k_norm.weight")),
            output=self.tensor(*name("attn_output.weight")),
            ffn_norm=self.tensor(*name("ffn_norm.weight")),
            gate_up=self.tensor(*name("ffn_gate.weight", "ffn_up.weight")),
            down=self.tensor(*name("ffn_down.weight")),
        )

    def tensor(self, *names: str) -> torch.Tensor:
        """The named tensors stacked along their rows."""
        found = self.optional(*names)
        if found is None:
            raise UnsupportedModel(f"the model has no tensor {names[0]}; it is not of a served architecture")
        return found

    def optional(self, *names: str) -> torch.Tensor | None:
        parts = []
        for name in names:
            part = self.source(name)
            if part is None:
                return None
            parts.append(part.to(self.dtype))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.device).contiguous()


def _gguf_source(path: str, geometry: Geometry, dtype: torch.dtype) -> Source:
    file = read_gguf(path)
    data = np.memmap(path, np.uint8, mode="r")

    def tensor(name: str) -> torch.Tensor | None:
        info = file.tensors.get(name)
        if info is None:
            return None
        values = _unpack(data, info, dtype)
        if geometry.rope_pairing == "interleaved" and ".attn_q." in name:
            return _half_order(values, geometry.heads)
        if geometry.rope_pairing == "interleaved" and ".attn_k." in name:
            return _half_order(values, geometry.kv_heads)
        return values

    return tensor


def _unpack(data: NDArray[np.uint8], info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """The tensor's values. A few thousand blocks at a time, so that numpy's temporaries stay in the cache."""
    kind = GGMLQuantizationType(info.type)
    elements, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = data[info.offset : info.offset + info.bytes].reshape(-1, block_bytes)
    step = max(1, _UNPACKED_AT_ONCE // elements)
    values = torch.empty(math.prod(info.shape), dtype=dtype)
    try:
        for start in range(0, len(blocks), step):
            piece = np.ascontiguousarray(_values(blocks[start : start + step], kind)).reshape(-1)
            values[start * elements :][: piece.size] = torch.from_numpy(piece)
    except NotImplementedError as error:
        raise UnsupportedModel(f"tensor {info.name} is of type {kind.name}, which is not read") from error
    return values.view(info.shape)


def _values(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """float32 values of ``blocks`` [n, block_bytes]."""
    if kind == GGMLQuantizationType.F32:
        return np.array(blocks).view(np.float32)
    if kind in _SIMPLE_BLOCKS:  # gguf's general way goes through a handful of rows at a time
        values: NDArray[np.float32] = getattr(quants, kind.name).dequantize_blocks(blocks)
        return values
    return np.asarray(quants.dequantize(np.ascontiguousarray(blocks), kind), np.float32)


def _half_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """From interleaved pairs (2j, 2j + 1) to half-rotated ones (j, j + d / 2), within each head's rows."""
    pairs = rows.view(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


_FOLDER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _folder_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    *block, part, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{_FOLDER_NAMES.get(part, part)}.{kind}"


def _folder_source(folder: Path) -> Source:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no .safetensors weights")
    try:
        opened = [safe_open(file, "pt") for file in files]
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the weights in {folder} cannot be read: {error}") from error
    where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a mapping)

    def tensor(name: str) -> torch.Tensor | None:
        stored = _folder_name(name)
        return where[stored].get_tensor(stored) if stored in where else None

    return tensor
