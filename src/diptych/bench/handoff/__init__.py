"""``diptych bench handoff``: how fast KV crosses, each number beside the physical limit of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diptych.bench.handoff.across import across
from diptych.bench.handoff.leases import leases_core_share
from diptych.bench.handoff.onethread import one_thread
from diptych.bench.handoff.overlap import tail
from diptych.bench.handoff.setup import ROWS, TOKENS, Rate, landing_in_memory
from diptych.engines.protocol import PrefillEngine

ACROSS: dict[str, dict[str, Any]] = {"tcp": {}, "tcp_clear": {"encrypted": False}, "nixl": {}, "mooncake": {}}


def run(json_path: Path | None = None, engine: PrefillEngine | None = None) -> dict[str, Any]:
    """Measures, prints the table and writes the JSON. ``engine`` is the prefill engine for the tail (None:
    skipped).

    Keys end in ``_gbps`` (1e9 bytes a second, the median; ``spread_gbps`` has slowest and fastest round); what could
    not be measured is null, and ``reasons`` says why.
    """
    rates: dict[str, Rate | None] = {}
    reasons: dict[str, str] = {}
    with landing_in_memory() as landing:
        rates |= one_thread(landing)
        for label, options in ACROSS.items():
            rates |= across(landing, label, options, reasons)
        overlap = tail(landing, engine, reasons)
    found = {f"{name}_gbps": None if rate is None else rate.median for name, rate in rates.items()}
    spread = {name: [rate.slowest, rate.fastest] for name, rate in rates.items() if rate is not None}
    more = {"spread_gbps": spread, "leases_core_share": leases_core_share(), "ratio": _ratios(rates)}
    result = found | overlap | more | {"reasons": reasons}
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    Console().print(_table(rates, result))
    return result


def _ratios(rates: dict[str, Rate | None]) -> dict[str, float]:
    over = {
        "identity": "memcpy", "convert": "memcpy", "admit": "memcpy", "tcp": "socket", "tcp_clear": "socket",
        "nixl": "nixl_raw", "mooncake": "mooncake_raw",
    }  # fmt: skip
    pairs = {name: (rates.get(name), rates.get(limit)) for name, limit in over.items()}
    return {name: rate.median / limit.median for name, (rate, limit) in pairs.items() if rate and limit}


def _table(rates: dict[str, Rate | None], result: dict[str, Any]) -> Table:
    table = Table(title="Handoff", caption=f"{TOKENS} tokens, {ROWS.region_bytes(TOKENS) / 1e6:.0f} MB")
    for column in ("what", "GB/s", "slowest - fastest", "of its limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, rate in rates.items():
        share = result["ratio"].get(name)
        numbers = ("-", "") if rate is None else (f"{rate.median:.2f}", f"{rate.slowest:.2f} - {rate.fastest:.2f}")
        table.add_row(name, *numbers, "" if share is None else f"{share:.2f}x")
    for name in ("tail_share_of_prefill", "leases_core_share"):
        table.add_row(name, "", "", "-" if result[name] is None else f"{result[name]:.3%}")
    return table
