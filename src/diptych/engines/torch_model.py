"""The forward pass of Llama, Qwen2 and Qwen3 decoders, a chunk at a time, over KV buffers that the caller owns.

Written out instead of called through transformers' modules because a prompt's forward pass needs less than they do: no
logits, no output of the last layer, no cache object, no repeated KV heads, and no fresh memory in the inner loop
(on a CPU, page faults of large temporaries cost as much as the attention itself).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from diptych.engines.torch_attention import CausalAttention, block_bounds
from diptych.engines.torch_weights import DecoderWeights, LayerWeights
from diptych.models.gguf_meta import Geometry


@dataclass(frozen=True)
class KVBuffers:
    """The KV of one sequence: ``keys`` [layers, kv_heads, capacity, d_k], ``values`` [..., d_v]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


class Decoder:
    """One model on one device. Not thread-safe: its scratch memory serves one chunk at a time."""

    def __init__(self, weights: DecoderWeights, geometry: Geometry, dtype: torch.dtype, device: str) -> None:
        self.weights, self.geometry, self.dtype, self.device = weights, geometry, dtype, device
        self._attention = CausalAttention(geometry.heads, geometry.kv_heads, dtype, device)
        self._scale = geometry.head_dim_k**-0.5

    def new_buffers(self, capacity: int) -> KVBuffers:
        """Uninitialised KV for ``capacity`` tokens."""
        g = self.geometry
        shape = (g.layers, g.kv_heads, capacity)
        keys = torch.empty(*shape, g.head_dim_k, dtype=self.dtype, device=self.device)
        return KVBuffers(keys, keys.new_empty(*shape, g.head_dim_v))

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor, start: int, kv: KVBuffers) -> None:
        """Computes the KV of ``tokens`` (int64 [n]) at positions ``start``.. into ``kv``, which holds all before."""
        self._run(tokens, start, kv, finish=False)

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor, start: int, kv: KVBuffers) -> torch.Tensor:
        """As ``extend``; also the logits (float32 [vocab]) of the token that follows the last one."""
        hidden = self._run(tokens, start, kv, finish=True)
        last = _norm(hidden[-1:], self.weights.norm, self.geometry.norm_eps)
        return (last @ self.weights.head.T).float()[0]

    def _run(self, tokens: torch.Tensor, start: int, kv: KVBuffers, *, finish: bool) -> torch.Tensor:
        """The hidden state after the last layer, or (not ``finish``) before it, once its KV is there."""
        self._attention.reserve(start + tokens.shape[0])
        rotation = self._rotation(start, start + tokens.shape[0])
        hidden = self.weights.embedding[tokens.to(self.device)]
        for index, layer in enumerate(self.weights.layers):
            needed = finish or index + 1 < self.geometry.layers
            normed = _norm(hidden, layer.attention_norm, self.geometry.norm_eps)
            query = self._project(layer, normed, rotation, (kv.keys[index], kv.values[index]), start, needed)
            if query is not None:
                attended = self._attend(query, rotation, kv.keys[index], kv.values[index], start)
                hidden.addmm_(attended, layer.output.T)
                normed = _norm(hidden, layer.ffn_norm, self.geometry.norm_eps)
                hidden.addmm_(self._feed_forward(layer, normed), layer.down.T)
        return hidden

    def _rotation(self, start: int, stop: int) -> _Rotation:
        positions = torch.arange(start, stop, dtype=torch.float32, device=self.device)
        angles = torch.outer(positions, self.weights.inverse_frequencies)[:, None]
        cos, sin = angles.cos(), angles.sin()
        scaled = (cos * self._scale).to(self.dtype), (sin * self._scale).to(self.dtype)
        return _Rotation(cos.to(self.dtype), sin.to(self.dtype), *scaled)

    def _project(
        self,
        layer: LayerWeights,
        normed: torch.Tensor,
        rotation: _Rotation,
        cache: tuple[torch.Tensor, torch.Tensor],
        start: int,
        with_query: bool,
    ) -> torch.Tensor | None:
        """Writes K (rotated) and V into ``cache``; returns the queries [tokens, heads, d], not rotated yet."""
        g, tokens = self.geometry, normed.shape[0]
        first = 0 if with_query else g.heads * g.head_dim_k
        mixed = F.linear(normed, layer.qkv[first:], None if layer.qkv_bias is None else layer.qkv_bias[first:])
        widths = (g.heads * g.head_dim_k - first, g.kv_heads * g.head_dim_k, g.kv_heads * g.head_dim_v)
        query, key, value = mixed.split(widths, 1)
        key = key.view(tokens, g.kv_heads, -1)
        if layer.k_norm is not None:
            key = _norm(key, layer.k_norm, g.norm_eps)
        keys, values = (plane[:, start : start + tokens].transpose(0, 1) for plane in cache)
        _rotate(key, rotation.cos, rotation.sin, keys)
        values.copy_(value.view(tokens, g.kv_heads, -1))
        if not with_query:
            return None
        query = query.view(tokens, g.heads, -1)
        return query if layer.q_norm is None else _norm(query, layer.q_norm, g.norm_eps)

    def _attend(
        self, query: torch.Tensor, rotation: _Rotation, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> torch.Tensor:
        g, tokens = self.geometry, query.shape[0]
        attended = query.new_empty(tokens, g.heads, g.head_dim_v)
        for a, b in block_bounds(tokens):
            rotated = query.new_empty(g.heads, b - a, g.head_dim_k)
            cos, sin = rotation.scaled_cos[a:b], rotation.scaled_sin[a:b]
            _rotate(query[a:b], cos, sin, rotated.transpose(0, 1))
            out = query.new_empty(g.heads, b - a, g.head_dim_v)
            self._attention.block(rotated, keys[:, : start + b], values[:, : start + b], out)
            attended[a:b] = out.transpose(0, 1)
        return attended.view(tokens, -1)

    def _feed_forward(self, layer: LayerWeights, normed: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(normed, layer.gate_up).chunk(2, 1)
        return F.silu(gate).mul_(up)


@dataclass(frozen=True)
class _Rotation:
    """RoPE's tables for one chunk, [tokens, 1, d / 2]; queries are scaled by 1 / sqrt(d) on the way."""

    cos: torch.Tensor
    sin: torch.Tensor
    scaled_cos: torch.Tensor
    scaled_sin: torch.Tensor


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Half-rotated RoPE of ``x`` [tokens, heads, d] into ``out`` of the same shape."""
    low, high = x.chunk(2, -1)
    out_low, out_high = out.chunk(2, -1)
    torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=out_high).addcmul_(low, sin)
