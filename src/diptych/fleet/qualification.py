"""Runs canaries through a pair: P's KV at D against D's own reading of the same prompt.

The full result is cached per (model, both builds, forms, converter); start-up repeats a few canaries, which also
tell the router what reading a prompt costs each side.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from diptych.config import Deadlines
from diptych.errors import HandoffError, WorkerError
from diptych.fleet import messages as m
from diptych.fleet.handover import hand_over
from diptych.fleet.messages import CANARY
from diptych.fleet.peer import Peer
from diptych.fleet.verdict import CanaryOutcome, Verdict
from diptych.handoff.contract import VERSION

CANARY_S = 120.0


class Measured(msgspec.Struct, frozen=True):
    """One canary's outcome, and what reading its prompt took on each side."""

    outcome: CanaryOutcome
    prefill_s: float
    own_prefill_s: float


async def run_canary(prefill: Peer, decode: Peer, prompt: Sequence[int], deadlines: Deadlines) -> Measured:
    """Raises WorkerError or HandoffError when the canary cannot be run at all."""
    request_id = f"{CANARY}{uuid.uuid4().hex}"
    box = decode.open(request_id)
    try:
        handed = await hand_over(prefill, decode, box, request_id, prompt, deadlines)
        decode.send(m.Canary(request_id, tuple(prompt), handed.seal))
        found = await box.expect(m.CanaryResult, CANARY_S)
    finally:
        decode.forget(request_id, cancel=True)
    outcome = CanaryOutcome(
        len(prompt),
        found.kl,
        found.top1_own == found.top1_landed,
        found.gap,
        found.k_row_error,
        found.v_row_error,
    )
    return Measured(outcome, handed.compute_ms / 1e3, found.own_prefill_ms / 1e3)


async def run_canaries(
    prefill: Peer,
    decode: Peer,
    prompts: Sequence[Sequence[int]],
    deadlines: Deadlines,
    advance: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """All of them, one after another; ``advance`` is called after each."""
    measured = []
    for prompt in prompts:
        measured.append(await run_canary(prefill, decode, prompt, deadlines))
        advance()
    return measured


def impossible(error: WorkerError | HandoffError) -> Verdict:
    """The verdict on a pair that could not even run its canaries."""
    worst = float("inf")
    return Verdict(0, worst, worst, 0.0, worst, worst, worst, False, (str(error),))


class Cache:
    """Verdicts on disk, one small file a pair, under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, prefill: m.Welcome, decode: m.Welcome) -> Path:
        key = msgspec.json.encode([_identity(prefill), _identity(decode), VERSION])
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.json"

    def get(self, prefill: m.Welcome, decode: m.Welcome) -> Verdict | None:
        """The verdict kept for this pair, or None; an unreadable file counts as none."""
        try:
            return msgspec.json.decode(self._path(prefill, decode).read_bytes(), type=Verdict)
        except (OSError, msgspec.DecodeError):
            return None

    def put(self, prefill: m.Welcome, decode: m.Welcome, verdict: Verdict) -> None:
        path = self._path(prefill, decode)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(verdict)))
        draft.replace(path)


def _identity(welcome: m.Welcome) -> list[object]:
    about = welcome.description
    return [about.engine, about.build, about.device, about.fingerprint, msgspec.to_builtins(about.form)]
