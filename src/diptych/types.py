"""The nouns that every room shares. Token counts are in tokens, times in milliseconds unless named ``_s``."""

from __future__ import annotations

from typing import Literal

import msgspec

Latency = Literal["standard", "optimized"]
Tier = Literal["reserved", "priority", "default", "flex"]
TIERS: tuple[Tier, ...] = ("reserved", "priority", "default", "flex")
"""In the order in which they are served."""
PlacementKind = Literal["disaggregated", "aggregated"]
FinishReason = Literal["stop", "length", "cancelled"]
Continuity = Literal["exact", "restarted_sampler"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next tokens are chosen. ``temperature`` 0 is greedy; ``top_k`` 0 means no limit.

    ``logprobs`` is None for none, else the number of alternatives given beside each chosen token.
    ``stop`` strings are matched by the gateway, which owns text; engines see token ids only.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    grammar: str | None = None
    json_schema: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the router sees it: token ids in, a sampling rule, and how it may be served."""

    id: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling
    latency: Latency = "standard"
    tier: Tier = "default"
    operation: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Natural-log probability of one token, with the alternatives the request asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Prepared(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a decode engine did before its first token; comes with the first chunk.

    ``kv_tokens`` is the engine's own count of landed KV that it took over (0 without a handoff);
    ``cached_tokens`` what it found in its own slot; ``prefill_ms`` its own reading of the rest, which also
    yields the first token (0 after a handoff, where the first token is a step of its own).
    """

    kv_tokens: int = 0
    kv_bytes: int = 0
    cached_tokens: int = 0
    slot_wait_ms: float = 0.0
    admit_ms: float = 0.0
    prefill_ms: float = 0.0


class TokenChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a decode engine yields: the tokens of one step, and on the last chunk why it ended.

    ``engine_ms`` on the last chunk is the engine's own time for the request, its first token's step included.
    An end-of-turn token ends the stream (``finish`` "stop") and is itself counted but not text.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    prepared: Prepared | None = None
    engine_ms: float | None = None


class Parts(msgspec.Struct, frozen=True):
    """Where a request's time to first token went, in milliseconds. They are disjoint and in this order."""

    queue: float = 0.0
    prefill: float = 0.0
    convert: float = 0.0
    transfer: float = 0.0
    decode_queue: float = 0.0
    first_step: float = 0.0


class EngineTime(msgspec.Struct, frozen=True):
    """What each engine says that it computed for the request, in milliseconds; waiting and moving left out."""

    prefill: float = 0.0
    decode: float = 0.0


class Predicted(msgspec.Struct, frozen=True):
    """End-to-end milliseconds that the router predicted for each placement; None where it is not possible."""

    disaggregated: float | None
    aggregated: float | None


class RequestRecord(msgspec.Struct, kw_only=True):
    """The proof of what happened to one request; served at ``GET /diptych/requests/{id}``.

    ``kv_tokens`` and ``kv_bytes`` count what the decode engine itself confirmed that it took over.
    ``transport`` carried that KV. ``recomputed`` is the reason for which a handoff was given up and the prompt read
    again, or None.
    ``served_latency`` is the latency class actually served, which Bedrock echoes, and ``tier`` the service tier.
    ``key`` is the name of the client's key, ``cost`` the price of its tokens, both where the gateway knows one.
    ``continuity`` is None unless the stream lost its decode worker and went on: ``exact`` where it is what it would
    have been, ``restarted_sampler`` where it is only as likely; ``decode`` is then the worker that ended it, all else
    is of the first one.
    """

    id: str
    model: str
    placement: PlacementKind
    prefill: str | None = None
    decode: str | None = None
    operation: str = ""
    status: Literal["running", "finished", "failed", "cancelled"] = "running"
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    transport: str | None = None
    output_tokens: int = 0
    started_at: float = 0.0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    e2e_ms: float | None = None
    parts_ms: Parts = Parts()
    engine_ms: EngineTime = EngineTime()
    predicted_ms: Predicted = Predicted(None, None)
    recomputed: str | None = None
    continuity: Continuity | None = None
    served_latency: Latency = "standard"
    tier: Tier = "default"
    key: str | None = None
    cost: float | None = None
    finish: FinishReason | None = None
