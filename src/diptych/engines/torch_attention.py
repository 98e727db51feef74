"""Causal attention of one chunk of queries over everything before it and itself, with grouped KV heads.

The query heads that share a KV head are stacked as rows of one matrix, so keys and values are never repeated.
Queries go in blocks of about 128: a block's scores stay near the cache, nothing beyond its end is computed.

    keys     . . . . . . . . . . . . . | . . . . . .
             past (no mask)            | this block: masked with a triangle
"""

from __future__ import annotations

import torch

BLOCK_TOKENS = 128
_LARGEST_BLOCK = BLOCK_TOKENS * 3 // 2


def block_bounds(tokens: int) -> list[tuple[int, int]]:
    """Splits a chunk of ``tokens`` into blocks of about ``BLOCK_TOKENS``, all but the last of equal size."""
    size = -(-tokens // max(1, round(tokens / BLOCK_TOKENS)))
    return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


class CausalAttention:
    """The attention of one layer's chunk; owns scratch for the scores, so it serves one at a time."""

    def __init__(self, heads: int, kv_heads: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.kv_heads, self.group = heads, kv_heads, heads // kv_heads
        self._scores = torch.empty(0, dtype=dtype, device=device)
        infinite = torch.full((_LARGEST_BLOCK, _LARGEST_BLOCK), float("-inf"), dtype=dtype, device=device)
        self._triangle = infinite.triu_(1)

    def reserve(self, tokens: int) -> None:
        """Makes room for scores over sequences of ``tokens`` tokens."""
        need = self.heads * _LARGEST_BLOCK * tokens
        if self._scores.numel() < need:
            self._scores = self._scores.new_empty(need)

    def block(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attends with one block of queries, scaled already, whose last token is the last of ``keys``.

        ``query`` [heads, tokens, d_k], contiguous; ``keys`` [kv_heads, n, d_k] and ``values`` likewise; the
        result is [heads, tokens, d_v].
        """
        tokens, total = query.shape[1], keys.shape[1]
        rows = self.group * tokens
        scores = self._scores[: self.kv_heads * rows * total].view(self.kv_heads, rows, total)
        torch.bmm(query.view(self.kv_heads, rows, -1), keys.transpose(1, 2), out=scores)
        diagonal = scores.view(self.kv_heads, self.group, tokens, total)[..., total - tokens :]
        diagonal += self._triangle[:tokens, :tokens]
        torch.softmax(scores, -1, out=scores)
        return torch.bmm(scores, values).view(self.heads, tokens, -1)
