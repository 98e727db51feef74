"""GPUs (and whatever has HBM, caches and an all-reduce): geometry, a roofline, and efficiencies fitted to records.

Every term is the time that the work would take at the chip's published peak, or a count of layers; a coefficient
says how much longer it takes in truth. Coefficients on times at peak are at least 1, so that no prediction beats
the hardware. The same terms serve the fit, which has a row per record, and the cost model built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from diptych.chips.catalogue import Chip
from diptych.chips.geometry import Geometry

Format = Literal["bf16", "fp8", "fp4", "mxfp4", "int4"]

DECODE_TERMS = (
    "weights",
    "kv",
    "flops",
    "allreduce",
    "layer",
    "expert_layer",
    "latent_layer",
    "indexer_layer",
)
MIXED_TERMS = ("mixed_flops", "mixed_tokens")
PREFILL_TERMS = (
    "dense_flops", "expert_flops", "attention_flops", "token_traffic", "weights", "layer", "latent_layer",
    "queued_flops", "queued_latent",
)  # fmt: skip
AT_PEAK = {"weights", "kv", "flops", "dense_flops", "expert_flops", "attention_flops"}
"""Terms that are a time at peak: their coefficient may not be below 1."""


class Precision(msgspec.Struct, frozen=True):
    """Bytes of one weight outside and inside experts and of one KV element, and the format that is multiplied."""

    dense_bytes: float
    expert_bytes: float
    kv_bytes: float
    multiply: str


PRECISIONS: dict[Format, Precision] = {
    "bf16": Precision(2.0, 2.0, 2.0, "bf16"),
    "fp8": Precision(1.0, 1.0, 1.0, "fp8"),
    "fp4": Precision(0.5625, 0.5625, 1.0, "fp4"),
    "mxfp4": Precision(2.0, 0.53125, 2.0, "mxfp4"),
    "int4": Precision(2.0, 0.53125, 2.0, "bf16"),
}
"""fp4 is NVFP4 (a scale for 16 weights); mxfp4 and int4 hold only the experts in 4 bits (a scale for 32)."""


class Setup(msgspec.Struct, frozen=True):
    """One replica: ``gpus`` of ``chip``; attention is split ``tp`` ways and repeated ``dp`` times (gpus = tp * dp)."""

    geometry: Geometry
    chip: Chip
    precision: Precision
    gpus: int
    dp: int = 1

    @property
    def tp(self) -> int:
        return self.gpus // self.dp

    @property
    def kv_split(self) -> int:
        """Ways in which one sequence's KV is split; a latent row is repeated on every rank instead."""
        return 1 if self.geometry.latent else min(self.tp, self.geometry.kv_heads)

    @property
    def peak(self) -> float:
        """FLOP/s of one GPU in the format that is multiplied. MXFP4 is widened to what the chip multiplies."""
        wanted = self.precision.multiply
        if wanted == "mxfp4":
            wanted = "fp8" if self.chip.flops.fp4 else "bf16"
        return self.chip.flops_of(wanted).si

    @property
    def bandwidth(self) -> float:
        return self.chip.memory.bandwidth.si

    @property
    def link(self) -> float:
        """Bytes/s to the neighbours; without a known link, the network."""
        links = self.chip.links
        return (links.scale_up if links.scale_up.known else links.nic).si if _linked(self.chip) else float("inf")

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights on one GPU."""
        g, p = self.geometry, self.precision
        experts = g.moe_layers * g.experts * g.expert_params * p.expert_bytes / self.gpus
        return g.always_params * p.dense_bytes / self.tp + experts

    def kv_room_tokens(self, share: float = 0.9, context: float = 8192.0) -> float:
        """Tokens of KV that the replica holds beside its weights, using ``share`` of the memory."""
        free = self.chip.memory.capacity.si * share - self.weight_bytes
        a_token = self.geometry.kv_bytes(context, self.precision.kv_bytes) / context / self.kv_split
        return max(0.0, free / a_token) * self.dp


def _linked(chip: Chip) -> bool:
    return chip.links.scale_up.known or chip.links.nic.known


def decode_terms(s: Setup, batch: float, context: float) -> dict[str, float]:
    """Term -> seconds (or layers) of one step of ``batch`` sequences of ``context`` tokens each."""
    g, p = s.geometry, s.precision
    touched = g.moe_layers * g.experts_touched(batch) * g.expert_params * p.expert_bytes / s.gpus
    rank_batch = batch / s.dp
    return {
        "weights": (g.always_params * p.dense_bytes / s.tp + touched) / s.bandwidth,
        "kv": rank_batch * g.kv_bytes(context, p.kv_bytes) / s.kv_split / s.bandwidth,
        "flops": 2.0 * g.active_params * batch / s.gpus / s.peak,
        "allreduce": _allreduce_s(s, rank_batch),
        **layer_terms(g),
    }


def mixed_terms(s: Setup, prompt: float) -> dict[str, float]:
    """Term -> seconds by which one prompt of ``prompt`` tokens, mixed into decode steps, holds those up in all."""
    flops = s.geometry.flops(prompt) / s.gpus / s.peak
    return {"mixed_flops": flops, "mixed_tokens": _traffic_s(s, prompt)}


def prefill_terms(s: Setup, prompt: float, concurrency: float) -> dict[str, float]:
    """Term -> seconds (or layers) of reading ``prompt`` tokens while ``concurrency`` requests are in the replica."""
    g, p = s.geometry, s.precision
    experts = g.moe_layers * g.experts_per_token * g.expert_params
    dense = 2.0 * (g.always_params - g.hidden * g.vocab) * prompt / s.tp / s.peak
    every = g.moe_layers * g.experts * g.expert_params * p.expert_bytes / s.gpus
    crowd = concurrency / s.dp / 8.0
    return {
        "dense_flops": dense,
        "expert_flops": 2.0 * experts * prompt / s.gpus / s.peak,
        "attention_flops": g.attention_flops(prompt) / s.tp / s.chip.flops_of("bf16").si,
        "token_traffic": _traffic_s(s, prompt) * s.dp,
        "weights": (g.always_params * p.dense_bytes / s.tp + every) / s.bandwidth,
        **layer_terms(g),
        "queued_flops": dense * crowd,
        "queued_latent": prompt * g.layers * float(g.latent) * crowd,
    }


def layer_terms(g: Geometry) -> dict[str, float]:
    return {
        "layer": float(g.layers),
        "expert_layer": float(g.moe_layers),
        "latent_layer": float(g.layers * g.latent),
        "indexer_layer": float(g.layers * (g.indexer_heads > 0)),
    }


def _allreduce_s(s: Setup, tokens: float) -> float:
    """Two all-reduces a layer of 2-byte activations; each moves 2 (tp - 1) / tp of them."""
    g = s.geometry
    return 2.0 * g.layers * tokens * g.hidden * 2.0 * 2.0 * (s.tp - 1) / s.tp / s.link if s.tp > 1 else 0.0


def _traffic_s(s: Setup, tokens: float) -> float:
    """Activations of ``tokens`` through two exchanges a layer, where there is more than one GPU."""
    g = s.geometry
    return tokens * g.hidden * 2.0 * 2.0 * 2.0 * g.layers / s.link if s.gpus > 1 else 0.0


def weighted(terms: Mapping[str, float], coefficients: Mapping[str, float]) -> float:
    """Sum of the terms, each times its coefficient (0 for a term that the coefficients lack)."""
    return sum(value * coefficients.get(name, 0.0) for name, value in terms.items())
