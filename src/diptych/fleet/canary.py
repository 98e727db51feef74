"""How far landed KV is from a decode engine's own, in numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.engines.protocol import Reading
from diptych.fleet.messages import CanaryResult
from diptych.handoff.contract import Dtype, KVForm

Floats = NDArray[np.floating]


Blocks = Sequence[NDArray[np.uint8]]


def compare(request_id: str, form: KVForm, own: Reading, arrived: Floats, blocks: Blocks) -> CanaryResult:
    """One canary's result. ``blocks`` are the landed images of ``form``, K of every layer and then V; ``own`` has the
    last prompt token's rows too, which are never handed over."""
    landed = landed_rows(form, blocks)
    tokens, layers = landed[0].shape[0], len(own.keys)
    top1_own, gap = top1_and_gap(own.logprobs)
    return CanaryResult(
        id=request_id,
        kl=kl_nats(own.logprobs, arrived),
        top1_own=top1_own,
        top1_landed=top1_and_gap(arrived)[0],
        gap=gap,
        k_row_error=worst_row([rows[:tokens] for rows in own.keys], landed[:layers]),
        v_row_error=worst_row([rows[:tokens] for rows in own.values], landed[layers:]),
        own_prefill_ms=own.prefill_ms,
    )


def landed_rows(form: KVForm, blocks: Blocks) -> list[Floats]:
    """Each image, [outer, tokens, bytes], as rows [tokens, heads * dim]. For forms whose K and V are apart, not paged
    and not quantised, as every decode engine's are."""
    rows = []
    for image, block in zip(form.images, blocks, strict=True):
        dtype = (form.keys if image.plane == "k" else form.values).dtype
        numbers = _numbers(block.reshape(image.outer, -1, image.unit_bytes), dtype)
        rows.append(numbers.transpose(1, 0, 2).reshape(numbers.shape[1], -1))
    return rows


def _numbers(cells: NDArray[np.uint8], dtype: Dtype) -> Floats:
    if dtype == "bf16":  # the upper half of a float32
        return (cells.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return cells.view({"f16": np.float16, "f32": np.float32}[dtype])


def kl_nats(own: Floats, other: Floats) -> float:
    """KL(own || other) of two log-probability vectors over the same vocabulary, in nats.

    Both are normalised first: an engine may round what it reports.
    """
    p, q = _normalised(own), _normalised(other)
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def top1_and_gap(logprobs: Floats) -> tuple[int, float]:
    """The most likely token and its lead over the second, in nats."""
    second, first = np.argpartition(logprobs, -2)[-2:]
    if logprobs[second] > logprobs[first]:
        second, first = first, second
    return int(first), float(logprobs[first] - logprobs[second])


def worst_row(own: Sequence[Floats], other: Sequence[Floats]) -> float:
    """The largest relative error |other - own| / |own| of any row of any layer; infinite for a non-finite row.

    Arrays are [tokens, row] per layer. A row is one token's keys (or values) of all heads.
    """
    return max(
        (_worst(a.astype(np.float32), b.astype(np.float32)) for a, b in zip(own, other, strict=True)),
        default=0.0,
    )


def _worst(own: Floats, other: Floats) -> float:
    error = np.linalg.norm(other - own, axis=1)
    size = np.linalg.norm(own, axis=1)
    relative = error / np.maximum(size, 1e-6)
    return float(np.max(relative)) if np.all(np.isfinite(relative)) else float("inf")


def _normalised(logprobs: Floats) -> Floats:
    wide = logprobs.astype(np.float64)
    top = np.max(wide)
    normalised: Floats = wide - (top + np.log(np.sum(np.exp(wide - top))))
    return normalised
