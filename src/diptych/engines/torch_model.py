"""The forward pass of Llama, Qwen2 and Qwen3 decoders, a chunk at a time, over the caller's KV buffers.

Written out instead of called through transformers' modules because a prompt needs less than they do: no
logits, no output of the last layer, no cache object, no repeated KV heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from diptych.engines.torch_attention import CausalAttention, block_bounds
from diptych.engines.torch_ops import Ops, Rotation
from diptych.engines.torch_weights import DecoderWeights, LayerWeights
from diptych.models.gguf_meta import Geometry


@dataclass(frozen=True)
class KVBuffers:
    """The KV of one sequence: ``keys`` [layers, kv_heads, capacity, d_k], ``values`` [..., d_v]."""

    keys: torch.Tensor
    values: torch.Tensor


class Decoder:
    """One model on one device. Not thread-safe: its scratch memory serves one chunk at a time."""

    def __init__(self, weights: DecoderWeights, geometry: Geometry, ops: Ops) -> None:
        self.weights, self.geometry, self.ops = weights, geometry, ops
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        empty = torch.empty(0, geometry.head_dim_k // 2, device=self.device)
        self._rotation = Rotation(empty, empty)
        self._attention = CausalAttention(geometry.heads, geometry.kv_heads, self.dtype, self.device)

    def new_buffers(self, capacity: int) -> KVBuffers:
        """Uninitialised KV for ``capacity`` tokens."""
        g = self.geometry
        shape = (g.layers, g.kv_heads, capacity)
        keys = torch.empty(*shape, g.head_dim_k, dtype=self.dtype, device=self.device)
        return KVBuffers(keys, keys.new_empty(*shape, g.head_dim_v))

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor, start: int, kv: KVBuffers) -> None:
        """Computes the KV of ``tokens`` (int64 [n]) from position ``start`` on; ``kv`` holds all before."""
        self._run(tokens, start, kv, finish=False)

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor, start: int, kv: KVBuffers) -> torch.Tensor:
        """As ``extend``; also the logits (float32 [vocab]) of the token that follows the last one."""
        hidden = self._run(tokens, start, kv, finish=True)
        last = self.ops.norm(hidden[-1:], self.weights.norm, self.geometry.norm_eps)
        return (last @ self.weights.head.T).float()[0]

    def _run(self, tokens: torch.Tensor, start: int, kv: KVBuffers, *, finish: bool) -> torch.Tensor:
        """The hidden state after the last layer, or (not ``finish``) before it, once its KV is there."""
        eps, stop = self.geometry.norm_eps, start + tokens.shape[0]
        self._reserve(stop)
        rotation = self._rotation.rows(start, stop)
        scaled = rotation.scaled(self.geometry.head_dim_k**-0.5)
        hidden = F.embedding(tokens.to(self.device), self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            cache = kv.keys[index, :, :stop], kv.values[index, :, :stop]
            with_query = finish or index + 1 < self.geometry.layers
            normed = self.ops.norm(hidden, layer.attention_norm, eps)
            query, key, value = self._project(layer, normed, with_query=with_query)
            self.ops.rotate(key, rotation, cache[0][:, start:])
            cache[1][:, start:] = value.transpose(0, 1)
            if with_query:
                hidden.addmm_(self._attend(query, scaled, *cache), layer.output.T)
                normed = self.ops.norm(hidden, layer.ffn_norm, eps)
                hidden.addmm_(self.ops.gated(normed, layer.gate_up), layer.down.T)
        return hidden

    def _reserve(self, tokens: int) -> None:
        """Makes room for a sequence of ``tokens``: scores, and RoPE's tables (cosines are slow)."""
        self._attention.reserve(tokens)
        if self._rotation.cos.shape[0] < tokens:
            positions = torch.arange(-(-tokens // 1024) * 1024, dtype=torch.float32, device=self.device)
            angles = torch.outer(positions, self.weights.inverse_frequencies)
            self._rotation = Rotation(angles.cos(), angles.sin())

    def _project(
        self, layer: LayerWeights, normed: torch.Tensor, *, with_query: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (none, where they are not wanted), keys and values, [tokens, heads, d], not rotated yet."""
        g, tokens = self.geometry, normed.shape[0]
        first = 0 if with_query else g.heads * g.head_dim_k
        bias = None if layer.qkv_bias is None else layer.qkv_bias[first:]
        mixed = F.linear(normed, layer.qkv[first:], bias)
        widths = (g.heads * g.head_dim_k - first, g.kv_heads * g.head_dim_k, g.kv_heads * g.head_dim_v)
        query, key, value = mixed.split(widths, 1)
        query, key = query.view(tokens, -1, g.head_dim_k), key.view(tokens, -1, g.head_dim_k)
        if layer.q_norm is not None and layer.k_norm is not None:
            query = self.ops.norm(query.contiguous(), layer.q_norm, g.norm_eps)
            key = self.ops.norm(key.contiguous(), layer.k_norm, g.norm_eps)
        return query, key, value.view(tokens, -1, g.head_dim_v)

    def _attend(self, query: torch.Tensor, scaled: Rotation, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of the last tokens of ``keys``, [tokens, heads * d_v]; ``scaled`` rotates and scales."""
        g, tokens = self.geometry, query.shape[0]
        start = keys.shape[1] - tokens
        attended = query.new_empty(tokens, g.heads, g.head_dim_v)
        for a, b in block_bounds(tokens):
            rotated = query.new_empty(g.heads, b - a, g.head_dim_k)
            self.ops.rotate(query[a:b], scaled.rows(a, b), rotated)
            out = self._attention.block(rotated, keys[:, : start + b], values[:, : start + b])
            attended[a:b] = out.transpose(0, 1)
        return attended.view(tokens, -1)
