"""``diptych bench handoff``: how fast KV crosses, each number beside the physical limit of the same run.

The bytes are the KV of a 2,048-token prompt of the default model (47 MB as f16). One thread converts; a
ratio's two numbers come from alternating rounds, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from diptych.engines.protocol import PrefillEngine
from diptych.errors import ConfigError
from diptych.handoff import convert, forms, layout
from diptych.handoff.contract import Geometry, KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.layout import Chunk
from diptych.handoff.leases import Lease, Leases
from diptych.handoff.plan import Plan, plan
from diptych.handoff.region import Region
from diptych.handoff.ticket import Ticket
from diptych.handoff.transports import load, open_door
from diptych.handoff.transports.remote import FRAME_BYTES, Mover

TOKENS, CHUNK, ROUNDS = 2048, 256, 9
GEOMETRY = Geometry(layers=30, kv_heads=3, head_dim_k=64, head_dim_v=64)
ROWS = forms.llama_cpp(GEOMETRY, "bench", "interleaved")
CACHE = forms.hugging_face(GEOMETRY, "bench")
LANDING_BYTES = 4 * ROWS.region_bytes(TOKENS)
_KEY = b"bench"

Array = NDArray[Any]
Arrays = tuple[list[Array], list[Array]]


def run(json_path: Path | None = None, engine: PrefillEngine | None = None) -> dict[str, Any]:
    """Measures, prints the table and writes the JSON. ``engine`` is the prefill engine for the tail (None:
    skipped).

    Keys end in ``_gbps`` (1e9 bytes a second); what could not be measured is null, and ``reasons`` says why.
    """
    found: dict[str, Any] = {"reasons": {}}
    with _landing() as landing:
        found |= _one_thread(landing)
        for name, options in (
            ("tcp", {}),
            ("tcp_clear", {"encrypted": False}),
            ("nixl", {}),
            ("mooncake", {}),
        ):
            found |= _across(landing, name, options, found["reasons"])
        found |= _tail(landing, engine, found["reasons"])
    found["leases_core_share"] = _leases_core_share()
    found["ratio"] = _ratios(found)
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    Console().print(_table(found))
    return found


def _ratios(found: dict[str, Any]) -> dict[str, float]:
    over = {
        "identity": "memcpy", "convert": "memcpy", "admit": "memcpy", "tcp": "socket", "tcp_clear": "socket",
        "nixl": "nixl_raw", "mooncake": "mooncake_raw",
    }  # fmt: skip
    rates = {name: (found.get(f"{name}_gbps"), found.get(f"{limit}_gbps")) for name, limit in over.items()}
    return {name: rate / limit for name, (rate, limit) in rates.items() if rate and limit}


def _table(found: dict[str, Any]) -> Table:
    table = Table(title="Handoff", caption=f"{TOKENS} tokens, {ROWS.region_bytes(TOKENS) / 1e6:.0f} MB")
    for column in ("what", "GB/s", "of its limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, value in found.items():
        if name.endswith("_gbps"):
            what = name.removesuffix("_gbps")
            share = found["ratio"].get(what)
            table.add_row(what, "-" if value is None else f"{value:.2f}", "" if share is None else f"{share:.2f}x")
    for name in ("tail_share_of_prefill", "leases_core_share"):
        table.add_row(name, "", "-" if found[name] is None else f"{found[name]:.3%}")
    return table


@contextmanager
def _landing() -> Iterator[Landing]:
    directory = Path(tempfile.mkdtemp(prefix="diptych-bench-", dir="/dev/shm"))
    try:
        landing = Landing(directory, LANDING_BYTES, receiver="bench")
        yield landing
        landing.close()
    finally:
        shutil.rmtree(directory)


# One thread


def _one_thread(landing: Landing) -> dict[str, float]:
    ticket = landing.offer("bench", ROWS, TOKENS, 600.0)
    region, _ = landing.open(ticket)
    raw = landing.memory[ticket.offset : ticket.offset + ticket.kv_bytes]
    cache, rows = _cache(), _rows()
    flat = [array.reshape(-1).view(np.uint8) for plane in rows for array in plane]
    private = np.ones(ticket.kv_bytes, np.uint8)
    work: dict[str, Callable[[], None]] = {
        "memcpy": lambda: _copy(flat, raw),
        "identity": lambda: _convert(plan(ROWS, ROWS), rows, 0, region),
        "convert": lambda: _convert(plan(CACHE, ROWS), cache, 1, region),
    }
    rates = _alternate(work, ticket.kv_bytes)
    landing.release(ticket.handoff_id)
    return rates | _admission(landing, rows, private)


def _alternate(work: dict[str, Callable[[], None]], size: int) -> dict[str, float]:
    """The median rate of each, in alternating rounds; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {f"{name}_gbps": size / median(times[1:]) / 1e9 for name, times in seconds.items()}


def _copy(sources: list[Array], target: Array) -> None:
    start = 0
    for source in sources:
        target[start : start + source.nbytes] = source
        start += source.nbytes


def _convert(steps: Plan, arrays: Arrays, axis: int, region: Region) -> None:
    converter = convert.Converter(steps)
    for start in range(0, TOKENS, CHUNK):
        converter.write(start, Chunk.of(steps.source, *_part(arrays, axis, start)), region)


def _part(arrays: Arrays, axis: int, start: int) -> Arrays:
    at = (slice(None),) * axis
    keys, values = ([array[(*at, slice(start, start + CHUNK))] for array in plane] for plane in arrays)
    return keys, values


def _cache() -> Arrays:
    """bf16 as an engine has it, [head, token, dim]."""
    rng = np.random.default_rng(0)
    keys, values = (
        [
            (rng.standard_normal((3, TOKENS, 64), dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for _ in range(30)
        ]
        for _ in range(2)
    )
    return keys, values


def _rows() -> Arrays:
    keys, values = ([np.ascontiguousarray(array.transpose(1, 0, 2)) for array in plane] for plane in _cache())
    return keys, values


def _admission(landing: Landing, rows: Arrays, private: Array) -> dict[str, float]:
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
    return {"admit_gbps": private.nbytes / median(seconds[1:]) / 1e9}


def _write(write: Callable[..., None], rows: Arrays) -> None:
    for start in range(0, TOKENS, CHUNK):
        write(start, *_part(rows, 0, start))


# Between two processes


def _across(landing: Landing, label: str, options: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    """A whole handoff from another process over one transport, beside its limit."""
    name = label.partition("_")[0]
    keys = [f"{label}_gbps"] + (["socket_gbps"] if label == "tcp" else [])
    raw = f"{name}_raw_gbps" if name in {"nixl", "mooncake"} else None
    try:
        door = open_door(name, landing, _KEY, **options)
    except ConfigError as error:
        reasons |= dict.fromkeys([*keys, *([raw] if raw else [])], str(error))
        return dict.fromkeys([*keys, *([raw] if raw else [])])
    with _child(_produce, name) as child:
        ways: dict[str, Callable[[], float]] = {f"{label}_gbps": lambda: _one_handoff(landing, child, door.via)}
        if label == "tcp":
            ways["socket_gbps"] = lambda: _one_socket_copy(child)
        if raw is not None:
            ticket = landing.offer("raw", ROWS, TOKENS, 600.0, door.via)
            ways[raw] = lambda: _ask(child, ("raw", ticket))
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS + 1):
            for way, call in ways.items():
                seconds[way].append(call())
        if raw is not None:
            landing.release(ticket.handoff_id)
    door.close()
    return {way: ROWS.region_bytes(TOKENS) / median(times[1:]) / 1e9 for way, times in seconds.items()}


def _one_handoff(landing: Landing, child: Connection, via: tuple[str, str]) -> float:
    ticket = landing.offer("bench", ROWS, TOKENS, 600.0, via)
    seconds = _ask(child, ("handoff", ticket))
    landing.release(ticket.handoff_id)
    return seconds


def _one_socket_copy(child: Connection) -> float:
    """The same bytes from the child through one plain TCP socket into memory here, in the same pieces."""
    into = memoryview(np.empty(ROWS.region_bytes(TOKENS), np.uint8))  # type: ignore[arg-type]  # numpy is a buffer
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = threading.Thread(target=_receive, args=(server, into))
        receiver.start()
        seconds = _ask(child, ("socket", server.getsockname()[1]))
        receiver.join()
    return seconds


def _receive(server: socket.socket, into: memoryview) -> None:
    connection, _ = server.accept()
    with connection:
        done = 0
        while done < len(into):
            done += connection.recv_into(into[done:])
        connection.sendall(b"!")


def _ask(child: Connection, task: tuple[str, Any]) -> float:
    child.send(task)
    return float(child.recv())


@contextmanager
def _child(target: Callable[[Connection, str], None], name: str) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(theirs, name))
    process.start()
    try:
        yield ours
        ours.send(None)
        process.join(20)
    finally:
        process.kill()
        process.join()


def _produce(parent: Connection, name: str) -> None:
    """The producer's process: does what it is asked and answers with the seconds that it took."""
    sender, rows = load(name, _KEY), _rows()
    flat = [array.reshape(-1).view(np.uint8) for plane in rows for array in plane]
    while (task := parent.recv()) is not None:
        what, argument = task
        started = time.perf_counter()
        if what == "handoff":
            writer = sender.open_writer(argument, ROWS)
            _write(writer.write, rows)
            writer.seal()
        elif what == "socket":
            _send(argument, flat)
        else:
            started = _write_raw(_mover_of(sender), argument)
        parent.send(time.perf_counter() - started)
    sender.close()


def _send(port: int, flat: list[Array]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for array in flat:
            connection.sendall(array.data)
        connection.recv(1)


def _mover_of(sender: Any) -> Mover:
    mover: Mover = sender.transport.mover
    return mover


def _write_raw(mover: Mover, ticket: Ticket) -> float:
    """The library's own write of as many bytes from registered memory; returns when it began."""
    _, peer, base = msgspec.json.decode(ticket.address)
    buffer = _raw_buffer(mover, ticket.kv_bytes)
    met = mover.meet(peer)
    started = time.perf_counter()
    runs = [
        (buffer.ctypes.data + at, base + ticket.offset + at, min(FRAME_BYTES, ticket.kv_bytes - at))
        for at in range(0, ticket.kv_bytes, FRAME_BYTES)
    ]
    handle = mover.write(met, runs)
    while not mover.done(handle):
        time.sleep(0.0002)
    return started


_BUFFERS: dict[int, Array] = {}


def _raw_buffer(mover: Mover, size: int) -> Array:
    if id(mover) not in _BUFFERS:
        _BUFFERS[id(mover)] = np.ones(size, np.uint8)
        mover.register(_BUFFERS[id(mover)])
    return _BUFFERS[id(mover)]


# Overlap and leases


def _tail(landing: Landing, engine: PrefillEngine | None, reasons: dict[str, str]) -> dict[str, Any]:
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
    shares = [_one_tail(landing, sender.open_writer, engine, (form, target), seed) for seed in range(4)]
    sender.close()
    return {"tail_share_of_prefill": median(shares[1:])}


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


def _leases_core_share(seconds: int = 600, leases: int = 1000, owners: int = 8) -> float:
    """Processor time, per second, of keeping leases: a heartbeat a second from each owner and one look at
    all.
    """
    held: Leases[None] = Leases(limit_bytes=1 << 50, silence_s=30.0)
    for number in range(leases):
        held.grant(Lease(str(number), f"decode-{number % owners}", 1 << 20, 1e9, None), 0.0)
    started = time.process_time()
    for second in range(seconds):
        for owner in range(owners):
            held.heartbeat(f"decode-{owner}", float(second))
        held.expire(float(second))
    return (time.process_time() - started) / seconds


if __name__ == "__main__":
    run()
