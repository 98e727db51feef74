"""Overlap: what is left to do when prefill's compute ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from diptych.bench.handoff.setup import TOKENS
from diptych.engines.protocol import PrefillEngine
from diptych.handoff import convert, forms, layout
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.plan import plan
from diptych.handoff.transports import load


def tail(landing: Landing, engine: PrefillEngine | None, reasons: dict[str, str]) -> dict[str, Any]:
    """From the end of prefill's compute to admission, as a share of prefill. The median of three fresh
    prompts.
    """
    if engine is None:
        reasons["tail_share_of_prefill"] = "no prefill engine was given"
        return {"tail_share_of_prefill": None}
    form = engine.describe().form
    target = forms.llama_cpp(form.geometry, form.fingerprint, "interleaved")
    convert.warm(plan(form, target))
    sender = load("shm")
    shares = sorted([_one_tail(landing, sender.open_writer, engine, (form, target), seed) for seed in range(4)][1:])
    sender.close()
    return {"tail_share_of_prefill": median(shares), "tail_share_of_prefill_spread": [shares[0], shares[-1]]}


def _one_tail(
    landing: Landing,
    open_writer: Callable[..., Any],
    engine: PrefillEngine,
    pair: tuple[KVForm, KVForm],
    seed: int,
) -> float:
    source, target = pair
    prompt = np.random.default_rng(seed).integers(100, 1000, TOKENS + 1).tolist()
    ticket = landing.offer("tail", target, TOKENS, 600.0)
    writer = open_writer(ticket, source)
    memory = np.ones(ticket.kv_bytes, np.uint8)
    blocks = [
        array.reshape(TOKENS, -1).view(np.uint8) for plane in layout.arrays(target, memory, TOKENS) for array in plane
    ]
    started = time.perf_counter()
    for _ in engine.prefill(prompt[:-1], writer):
        pass
    computed = time.perf_counter()
    landing.admit(ticket.handoff_id, writer.seal(), blocks)
    admitted = time.perf_counter()
    landing.release(ticket.handoff_id)
    return (admitted - computed) / (computed - started)
