"""One thread: identity and conversion into the landing beside memcpy, and the receiver's admission."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from diptych.bench.handoff.setup import CACHE, CHUNK, ROUNDS, ROWS, TOKENS, Array, Arrays, Rate, alternate, rate
from diptych.bench.handoff.setup import cache as _cache
from diptych.bench.handoff.setup import part as _part
from diptych.bench.handoff.setup import rows as _rows
from diptych.bench.handoff.setup import write as _write
from diptych.handoff import convert
from diptych.handoff.landing import Landing
from diptych.handoff.layout import Chunk
from diptych.handoff.plan import Plan, plan
from diptych.handoff.region import Region
from diptych.handoff.transports import load


def one_thread(landing: Landing) -> dict[str, Rate]:
    ticket = landing.offer("bench", ROWS, TOKENS, 600.0)
    region, _ = landing.open(ticket)
    raw = landing.memory[ticket.offset : ticket.offset + ticket.kv_bytes]
    cache, rows = _cache(), _rows()
    flat = [array.reshape(-1).view(np.uint8) for plane in rows for array in plane]
    private = np.ones(ticket.kv_bytes, np.uint8)
    work: dict[str, Callable[[], float | None]] = {
        "memcpy": lambda: _copy(flat, raw),
        "identity": lambda: _convert(plan(ROWS, ROWS), rows, 0, region),
        "convert": lambda: _convert(plan(CACHE, ROWS), cache, 1, region),
    }
    rates = alternate(work)
    landing.release(ticket.handoff_id)
    return rates | _admission(landing, rows, private)


def _copy(sources: list[Array], target: Array) -> None:
    start = 0
    for source in sources:
        target[start : start + source.nbytes] = source
        start += source.nbytes


def _convert(steps: Plan, arrays: Arrays, axis: int, region: Region) -> None:
    converter = convert.Converter(steps)
    for start in range(0, TOKENS, CHUNK):
        converter.write(start, Chunk.of(steps.source, *_part(arrays, axis, start)), region)


def _admission(landing: Landing, rows: Arrays, private: Array) -> dict[str, Rate]:
    """The receiver's copy into private memory with its digest."""
    sender = load("shm")
    blocks = np.split(private.reshape(-1, ROWS.images[0].unit_bytes), len(ROWS.images))
    seconds = []
    for _ in range(ROUNDS + 1):
        ticket = landing.offer("bench", ROWS, TOKENS, 600.0)
        writer = sender.open_writer(ticket, ROWS)
        _write(writer.write, rows)
        seal = writer.seal()
        started = time.perf_counter()
        landing.admit(ticket.handoff_id, seal, blocks)
        seconds.append(time.perf_counter() - started)
        landing.release(ticket.handoff_id)
    sender.close()
    return {"admit": rate(seconds[1:])}
