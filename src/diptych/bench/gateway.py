"""``diptych bench gateway``: what a token costs the real gateway process, and what it adds to the first one.

The gateway runs as in production, with tokenizer, service, router and worker connection; in place of the engine a
process sends tokens at a set rate. CPU time is the gateway process's own, from /proc, over tokens delivered.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from diptych.bench.paced_engine import INSTANT, PacedSpec
from diptych.bench.stream_load import Dialect, drain, request_bytes
from diptych.config import DecodeSettings, FleetSettings, GatewaySettings
from diptych.fleet.canary_prompts import prose
from diptych.fleet.supervisor import ProcessSpec, Supervisor
from diptych.gateway.main import GatewaySpec
from diptych.handoff.contract import Geometry, KVForm, Rope, Tensor
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.serving import find_model

CELLS = {"1": (1, 1000), "8": (8, 1000), "32": (32, 1000), "1x3000": (1, 3000)}
"""Name -> streams and tokens per second of each."""
SECONDS = 2.5  # what one stream says must fit into the model's context, 8,192 tokens
FIRST_BYTE_REQUESTS = 50


class Cell(msgspec.Struct, frozen=True):
    """One run of so many streams."""

    us_per_token: float
    p99_gap_ms: float
    tokens_per_s: float
    lost: int


async def run(settings: FleetSettings, runs: int) -> dict[str, Any]:
    """The issue's JSON: medians over ``runs`` of every cell in both dialects."""
    async with _gateway(find_model(settings)) as (port, pid, model):
        cells: dict[str, dict[str, list[Cell]]] = {"event_stream": {}, "sse": {}}
        for _ in range(runs):
            for dialect in ("event_stream", "sse"):
                for name, (streams, rate) in CELLS.items():
                    cell = await asyncio.to_thread(_measure, port, pid, model, dialect, streams, rate)
                    cells[dialect].setdefault(name, []).append(cell)
        added = await asyncio.to_thread(_first_byte, port, model)
    busiest = [cell for by_name in cells.values() for cell in by_name["32"]]
    return {
        **{dialect: _summary(by_name) for dialect, by_name in cells.items()},
        "p99_gap_ms": median(cell.p99_gap_ms for cell in busiest),
        "achieved_tokens_per_s": median(cell.tokens_per_s for cell in busiest),
        "lost_tokens": sum(cell.lost for by_name in cells.values() for made in by_name.values() for cell in made),
        "added_first_byte_ms": added,
    }


def _summary(by_name: dict[str, list[Cell]]) -> dict[str, Any]:
    return {
        "us_per_token": {name: round(median(c.us_per_token for c in made), 2) for name, made in by_name.items()},
        "runs": {name: [round(c.us_per_token, 2) for c in made] for name, made in by_name.items()},
        "p99_gap_ms": {name: round(median(c.p99_gap_ms for c in made), 2) for name, made in by_name.items()},
    }


def _measure(port: int, pid: int, model: str, dialect: Dialect, streams: int, rate: int) -> Cell:
    tokens = int(rate * SECONDS)
    requests = [request_bytes(dialect, model, tokens, rate)] * streams
    before_s, began_s = cpu_seconds(pid), time.perf_counter()
    readers = drain(port, dialect, requests)
    took_s = time.perf_counter() - began_s
    spent_s = cpu_seconds(pid) - before_s
    got = sum(reader.tokens for reader in readers)
    gaps = sorted(gap for reader in readers for gap in reader.gaps_s)
    p99_ms = gaps[int(len(gaps) * 0.99)] * 1e3
    return Cell(spent_s / got * 1e6, p99_ms, got / took_s, tokens * streams - got)


def _first_byte(port: int, model: str) -> float:
    """Median milliseconds from sending a request to its first token, the engine's own time being none."""
    request = request_bytes("event_stream", model, 1, INSTANT)
    first = [drain(port, "event_stream", [request])[0] for _ in range(FIRST_BYTE_REQUESTS)]
    return round(median(reader.first_s for reader in first) * 1e3, 3)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all its threads, to the nanosecond where the kernel tells."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


@asynccontextmanager
async def _gateway(model: ModelBundle) -> AsyncGenerator[tuple[int, int, str], None]:
    """(port, process id, model id) of a gateway over the paced engine."""
    tokens = int(max(rate for _, rate in CELLS.values()) * SECONDS) + 1024
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as folder:
        decode = DecodeSettings(ctx_per_request=tokens)
        settings = FleetSettings(gateway=GatewaySettings(port=_free_port()), prefill=(), decode=(decode,))
        address = f"ipc://{folder}/decode"
        spec = GatewaySpec(settings=settings, model=model, addresses={decode.id: address}, cache=folder)
        engine = PacedSpec(
            address=address, worker=decode.id, context_tokens=tokens, form=_form(), tokens=_words(model)
        )  # fmt: skip
        supervisor = Supervisor(
            [
                ProcessSpec(name="engine", module="diptych.bench.paced_engine", settings=msgspec.json.encode(engine)),
                ProcessSpec(name="gateway", module="diptych.gateway.main", settings=msgspec.json.encode(spec)),
            ]
        )
        keeping = asyncio.create_task(supervisor.run())
        try:
            await _listening(settings.gateway.port)
            pid = supervisor.pid("gateway")
            assert pid is not None
            yield settings.gateway.port, pid, model.id
        finally:
            supervisor.stop()
            await keeping


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _listening(port: int, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


def _words(model: ModelBundle) -> tuple[int, ...]:
    """Tokens that are text by themselves, as a model would say them."""
    chat = ChatFormat.load(model)
    return tuple(token for token in chat.encode(prose(1, 40)) if chat.token_text(token).isascii())


def _form() -> KVForm:
    """Any form: nothing is handed over here."""
    tensor = Tensor(axes=("token", "head", "dim"), dtype="f16")
    geometry = Geometry(layers=1, kv_heads=1, head_dim_k=64, head_dim_v=64)
    rope = Rope(pairing="none")
    return KVForm(name="none", fingerprint="bench", geometry=geometry, keys=tensor, values=tensor, rope=rope)
