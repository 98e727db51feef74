"""What a model's shape implies: parameters, KV bytes, FLOPs. Everything is computed from the geometry.

A dense layer reads all of its weights at every step. A layer of experts reads those that somebody in the batch
was routed to: of E experts with k chosen per token, a batch of B touches E(1 - (1 - k/E)^B) if the router is even.

KV per token and layer: grouped-query attention keeps K and V of every KV head (2 x kv_heads x head_dim elements);
multi-head latent attention keeps one compressed row (kv_lora_rank + rope_head_dim). A layer with a sliding window
or with chunked attention never keeps more than ``window`` tokens of a sequence.
"""

from __future__ import annotations

import msgspec


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a transformer. Counts are plain numbers; widths are in elements, windows in tokens.

    ``dense_layers`` of the ``layers`` have one MLP of width ``dense_ffn``; the rest have experts of ``expert_ffn``.
    ``kv_lora_rank`` > 0 means multi-head latent attention, whose projections ``q_lora_rank``, ``nope_head_dim``,
    ``rope_head_dim`` and ``v_head_dim`` describe. ``indexer_heads`` > 0 means sparse attention with an indexer.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dense_layers: int
    dense_ffn: int = 0
    mlp_matrices: int = 3
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    window: int = 0
    windowed_layers: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    nope_head_dim: int = 0
    rope_head_dim: int = 0
    v_head_dim: int = 0
    indexer_heads: int = 0
    tied_embeddings: bool = False

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def latent(self) -> bool:
        """Whether attention is multi-head latent, so that the KV is one row that every head shares."""
        return self.kv_lora_rank > 0

    @property
    def kv_elements(self) -> int:
        """KV elements of one token in one layer."""
        if self.latent:
            return self.kv_lora_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention projections."""
        if not self.latent:
            return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        query = self.hidden * self.q_lora_rank + self.q_lora_rank * self.heads * self._qk_dim
        latent = self.hidden * (self.kv_lora_rank + self.rope_head_dim)
        expand = self.kv_lora_rank * self.heads * (self.nope_head_dim + self.v_head_dim)
        return query + latent + expand + self.heads * self.v_head_dim * self.hidden

    @property
    def pair_width(self) -> int:
        """Multiply-adds of one query-key pair in one layer: the score and the weighted sum of V."""
        return self.heads * (self._qk_dim + self.v_head_dim if self.latent else 2 * self.head_dim)

    @property
    def _qk_dim(self) -> int:
        return self.nope_head_dim + self.rope_head_dim

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert in one layer."""
        return self.mlp_matrices * self.hidden * self.expert_ffn

    @property
    def always_params(self) -> int:
        """Weights that every token reads: attention, dense MLPs, shared experts, routers and the output head."""
        dense = self.dense_layers * self.mlp_matrices * self.hidden * self.dense_ffn
        shared = self.moe_layers * self.mlp_matrices * self.hidden * self.shared_experts * self.shared_ffn
        router = self.moe_layers * self.hidden * self.experts
        return self.layers * self.attention_params + dense + shared + router + self.hidden * self.vocab

    @property
    def params(self) -> int:
        """All weights."""
        embedding = 0 if self.tied_embeddings else self.hidden * self.vocab
        return self.always_params + embedding + self.moe_layers * self.experts * self.expert_params

    @property
    def active_params(self) -> int:
        """Weights that take part in one token."""
        return self.always_params + self.moe_layers * self.experts_per_token * self.expert_params

    def experts_touched(self, tokens: float) -> float:
        """Expected number of distinct experts of a layer that ``tokens`` evenly routed tokens read."""
        if not self.experts:
            return 0.0
        unread = (1.0 - self.experts_per_token / self.experts) ** float(tokens)
        return self.experts * (1.0 - float(unread))

    def read_params(self, tokens: float) -> float:
        """Expected weights read by one step over ``tokens`` tokens."""
        return self.always_params + self.moe_layers * self.experts_touched(tokens) * self.expert_params

    def kept_tokens(self, context: float) -> float:
        """Token-layers of KV that one sequence of ``context`` tokens keeps."""
        full = self.layers - self.windowed_layers
        return full * context + self.windowed_layers * min(context, self.window)

    def kv_bytes(self, context: float, element_bytes: float = 2.0) -> float:
        """Bytes of KV of one sequence of ``context`` tokens, windows counted."""
        return self.kept_tokens(context) * self.kv_elements * element_bytes

    def kv_bytes_per_token(self, element_bytes: float = 2.0) -> float:
        """Bytes that one more token adds while it is inside every window (what a handoff carries per token)."""
        return self.layers * self.kv_elements * element_bytes

    def attention_flops(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """FLOPs of scores and weighted sums when ``new_tokens`` follow ``cached_tokens``, causal, windows counted."""
        full = (self.layers - self.windowed_layers) * _causal_pairs(new_tokens, cached_tokens, float("inf"))
        near = self.windowed_layers * _causal_pairs(new_tokens, cached_tokens, self.window)
        return 2.0 * self.pair_width * (full + near)

    def flops(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """FLOPs of reading ``new_tokens`` after ``cached_tokens`` (multiply and add count as two)."""
        weights = self.active_params - self.hidden * self.vocab
        return 2.0 * weights * new_tokens + self.attention_flops(new_tokens, cached_tokens)


def _causal_pairs(new: float, cached: float, window: float) -> float:
    """Query-key pairs when query i (of ``new``) sees the keys before it and itself, at most ``window`` of them."""
    inside = min(new, max(0.0, window - cached))
    pairs = inside * cached + inside * inside / 2.0
    return pairs + ((new - inside) * window if inside < new else 0.0)
