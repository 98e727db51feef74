"""Records of the latest requests, and the timeline that fills one in. The service's only memory of the past."""

from __future__ import annotations

import time
from collections import OrderedDict

from diptych.errors import DiptychError
from diptych.fleet.handover import HandedOver
from diptych.routing.placement import Estimate, Placement
from diptych.types import Continuity, EngineTime, Parts, Predicted, Prepared, Request, RequestRecord, TokenChunk

KEPT = 4096


class Records:
    """The latest ``KEPT`` records by request id."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def open(self, request: Request) -> Timeline:
        record = RequestRecord(
            id=request.id,
            model=request.model,
            placement="aggregated",
            operation=request.operation,
            tier=request.tier,
            prompt_tokens=len(request.prompt),
            started_at=time.time(),
        )
        self._records[request.id] = record
        while len(self._records) > KEPT:
            self._records.popitem(last=False)
        return Timeline(record)

    def get(self, request_id: str) -> RequestRecord | None:
        return self._records.get(request_id)

    def latest(self, limit: int) -> list[RequestRecord]:
        newest_first = reversed(self._records.values())
        return [record for record, _ in zip(newest_first, range(limit), strict=False)]


class Timeline:
    """Fills one record in as its request goes. Times are of the service's monotonic clock.

    The parts of the time to first token are disjoint. With a handoff, what the workers measured is taken as it is
    and ``transfer`` is the rest between the seal and the first token's step: messages, admission and restore.

        start ..offer, queue.. |prefill| tail |seal -> admitted| slot wait | first step -> first token
    """

    def __init__(self, record: RequestRecord) -> None:
        self.record = record
        self.first_at: float | None = None
        self._started = time.monotonic()
        self._last = self._started
        self._handed: HandedOver | None = None
        self._handed_at = self._started
        self._attempt_at = self._started

    def placed(self, placement: Placement, request: Request) -> None:
        """Where the request goes. A stream that goes on elsewhere keeps the record of its first token."""
        chosen = placement.chosen
        record = self.record
        if self.first_at is not None:
            record.decode = chosen.decode
            return
        self._handed, record.recomputed = None, None
        record.placement, record.prefill, record.decode = chosen.kind, chosen.prefill, chosen.decode
        record.predicted_ms = Predicted(_total_ms(placement.disaggregated), _total_ms(placement.aggregated))
        fast = chosen.kind == "disaggregated" and request.latency == "optimized"
        record.served_latency = "optimized" if fast else "standard"
        self._attempt_at = time.monotonic()

    def continues(self, continuity: Continuity | None) -> None:
        """How the stream goes on, where it had to."""
        self.record.continuity = continuity

    def handed_over(self, handed: HandedOver) -> None:
        if self.first_at is not None:
            return
        self._handed, self._handed_at = handed, time.monotonic()
        self.record.cached_tokens = handed.cached_tokens
        self.record.transport = handed.transport

    def recomputed(self, reason: str) -> None:
        """The prompt is read by the decode engine after all."""
        if self.first_at is not None:
            return
        self.record.recomputed = reason
        self.record.served_latency = "standard"

    def prepared(self, prepared: Prepared) -> None:
        """The first chunk is here; its parts are now known."""
        if self.first_at is not None:
            return
        now = time.monotonic()
        record = self.record
        record.kv_tokens = prepared.kv_tokens
        record.kv_bytes = prepared.kv_bytes
        if prepared.kv_tokens == 0:
            record.cached_tokens = prepared.cached_tokens
        record.parts_ms = self._parts(prepared, now)

    def _parts(self, prepared: Prepared, now: float) -> Parts:
        handed = self._handed
        if handed is None or prepared.kv_tokens == 0:
            ttft_ms = (now - self._started) * 1e3
            known_ms = prepared.slot_wait_ms + prepared.prefill_ms
            queue_ms = (self._attempt_at - self._started) * 1e3
            rest_ms = max(0.0, ttft_ms - known_ms - queue_ms)
            return Parts(queue_ms, prepared.prefill_ms, 0.0, 0.0, prepared.slot_wait_ms, rest_ms)
        before_ms = (self._handed_at - self._started) * 1e3
        queue_ms = max(0.0, before_ms - handed.prefill_ms - handed.tail_ms)
        after_ms = (now - self._handed_at) * 1e3
        transfer_ms = min(after_ms, prepared.admit_ms)
        first_ms = max(0.0, after_ms - transfer_ms - prepared.slot_wait_ms)
        return Parts(queue_ms, handed.prefill_ms, handed.tail_ms, transfer_ms, prepared.slot_wait_ms, first_ms)

    def tokens(self, count: int, chunk: TokenChunk) -> None:
        now = time.monotonic()
        if self.first_at is None:
            self.first_at = now
            self.record.ttft_ms = (now - self._started) * 1e3
        self._last = now
        self.record.output_tokens = count
        if chunk.finish is not None:
            self.record.finish, self.record.status = chunk.finish, "finished"
            read_ms = self._handed.compute_ms if self._handed else 0.0
            self.record.engine_ms = EngineTime(read_ms, chunk.engine_ms or 0.0)

    def failed(self, error: DiptychError) -> None:
        self.record.status, self.record.error = "failed", f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """The request is over; whoever closed the generator early cancelled it."""
        record = self.record
        if record.status == "running":
            record.status = "cancelled"
        record.e2e_ms = (self._last - self._started) * 1e3 if self.first_at is not None else None
        if self.first_at is not None and record.output_tokens > 1:
            record.itl_ms = (self._last - self.first_at) * 1e3 / (record.output_tokens - 1)


def _total_ms(estimate: Estimate | None) -> float | None:
    return None if estimate is None else round(estimate.total_s * 1e3, 3)
