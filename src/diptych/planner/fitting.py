"""``diptych fit``: coefficients as a TOML file from a benchmark's records, a CSV, or aiconfigurator's table.

Our own records say when each request ran, so the batch and the context that it shared are counted from the others
that were decoding in the middle of its output. A CSV says both in its columns.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from diptych.chips.fit import fit_positive
from diptych.errors import ConfigError
from diptych.planner.validation import silicon

COLUMNS = ("prompt_tokens", "prefill_ms (or ttft_ms)", "itl_ms", "batch", "context_tokens")
PREFILL = ("fixed", "token", "token_squared")
DECODE = ("fixed", "sequence", "context")
UNITS = {"fixed": ("ms", 1e3), "token": ("us", 1e6), "token_squared": ("ns", 1e9), "sequence": ("us", 1e6),
         "context": ("ns", 1e9)}  # fmt: skip


class Observation(msgspec.Struct, frozen=True):
    """One request on one worker. Times in seconds; ``itl_s`` None where there was one token."""

    prompt_tokens: int
    prefill_s: float
    itl_s: float | None
    batch: float
    context_tokens: float


def fit_records(path: Path) -> str:
    """The TOML text of what the records identify. Raises ConfigError naming file, line and cure."""
    seen = read(path)
    prefill = fit_positive([_powers(o) for o in seen], [o.prefill_s for o in seen])
    steps = [o for o in seen if o.itl_s]
    decode = fit_positive([[1.0, o.batch, o.context_tokens] for o in steps], [o.itl_s or 0.0 for o in steps])
    source = f"fit to {len(seen)} records of {path.name}"
    return "\n".join([
        f"# {source}: {_error(seen, prefill, steps, decode)}",
        *_section("decode", dict(zip(DECODE, decode, strict=True)), source),
        *_section("prefill", dict(zip(PREFILL, prefill, strict=True)), source),
    ]) + "\n"  # fmt: skip


def read(path: Path) -> list[Observation]:
    """Observations from a CSV or from JSON lines. Raises ConfigError naming file, line and cure."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    seen = _from_records(path, text) if text.lstrip().startswith("{") else _from_csv(path, text)
    if len(seen) < len(PREFILL):
        raise ConfigError(
            f"{path}: {len(seen)} usable records; give at least {len(PREFILL)}, at several prompt lengths"
        )
    return seen


def _powers(o: Observation) -> list[float]:
    return [1.0, float(o.prompt_tokens), float(o.prompt_tokens) ** 2]


def _from_csv(path: Path, text: str) -> list[Observation]:
    rows = csv.DictReader(text.splitlines())
    header = rows.fieldnames or []
    for name in ("prompt_tokens", "itl_ms"):
        if name not in header:
            raise ConfigError(f"{path}:1: column {name!r} is missing; a CSV has {', '.join(COLUMNS)}")
    first = "prefill_ms" if "prefill_ms" in header else "ttft_ms"
    seen = []
    for record in rows:
        try:
            prompt, batch = int(record["prompt_tokens"]), float(record.get("batch") or 1)
            context = float(record.get("context_tokens") or batch * prompt)
            seen.append(_observation(prompt, float(record[first]), float(record["itl_ms"] or 0), batch, context))
        except (KeyError, ValueError, TypeError):
            raise ConfigError(f"{path}:{rows.line_num}: a field is missing, not a number or not above 0; "
                              "mend the row or remove it") from None  # fmt: skip
    return seen


def _from_records(path: Path, text: str) -> list[Observation]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            records.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            raise ConfigError(f"{path}:{number}: not a JSON object; mend the line or remove it") from None
    done = [r for r in records if r.get("status", "finished") == "finished" and r.get("ttft_ms") and r.get("e2e_ms")]
    return [_shared(record, [r for r in done if r.get("decode") == record.get("decode")]) for record in done]


def _shared(record: dict[str, Any], others: Iterable[dict[str, Any]]) -> Observation:
    """The record with the sequences that its worker was decoding in the middle of its output."""
    middle = record["started_at"] + (record["ttft_ms"] + record["e2e_ms"]) / 2e3
    beside = [
        r for r in others if r["started_at"] + r["ttft_ms"] / 1e3 <= middle <= r["started_at"] + r["e2e_ms"] / 1e3
    ]
    context = sum(r["prompt_tokens"] + r["output_tokens"] / 2 for r in beside)
    parts = record.get("parts_ms") or {}
    return _observation(
        record["prompt_tokens"] - record.get("cached_tokens", 0), parts.get("prefill") or record["ttft_ms"],
        record.get("itl_ms") or 0.0, len(beside), context,
    )  # fmt: skip


def _observation(prompt: int, first_ms: float, itl_ms: float, batch: float, context: float) -> Observation:
    if not (prompt > 0 and first_ms > 0 and math.isfinite(first_ms) and itl_ms >= 0 and math.isfinite(itl_ms)):
        raise ValueError(prompt)
    return Observation(prompt, first_ms / 1e3, itl_ms / 1e3 or None, batch, context)


def _error(
    seen: Sequence[Observation],
    prefill: Sequence[float],
    steps: Sequence[Observation],
    decode: Sequence[float],
) -> str:
    def median(pairs: list[tuple[float, float]]) -> float:
        errors = sorted(abs(p / m - 1.0) for p, m in pairs)
        return errors[len(errors) // 2]

    first = median([(sum(c * t for c, t in zip(prefill, _powers(o), strict=True)), o.prefill_s) for o in seen])
    gap = median([(decode[0] + decode[1] * o.batch + decode[2] * o.context_tokens, o.itl_s or 1.0) for o in steps])
    return f"median error of prefill {first:.1%}, of a step {gap:.1%}, on the records themselves"


def _section(name: str, found: dict[str, float], source: str) -> list[str]:
    today = datetime.now(UTC).date().isoformat()
    lines = ["", f"[{name}]"]
    for key, seconds in found.items():
        unit, factor = UNITS[key]
        note = "" if seconds else "; the records do not identify it"
        lines.append(f'{key} = {{ value = {seconds * factor:.6g}, unit = "{unit}", kind = "measured", '
                     f'source = "{source}{note}", date = "{today}" }}')  # fmt: skip
    return lines


# -- the GPU family ----------------------------------------------------------------------------------------------------

LAYER_UNITS = {"layer": ("us", 1e6), "expert_layer": ("us", 1e6), "latent_layer": ("us", 1e6),
               "indexer_layer": ("us", 1e6), "queued_latent": ("ns", 1e9)}  # fmt: skip
HELD = 1e-3
"""A coefficient this near to 1 is one that the peak held there."""


def fit_gpu(path: Path) -> str:
    """The TOML text of ``catalogue/fits/gpu.toml``, from aiconfigurator's table."""
    rows, _ = silicon.read(path)
    step, first = silicon.fit_tpot(rows), silicon.fit_ttft(rows)
    source = f"fit to {len(rows)} aggregated rows of ai-dynamo/aiconfigurator's silicon sample (Apache-2.0)"
    chips = ", ".join(f'"{chip}"' for chip in sorted({row.setup.chip.id for row in rows}))
    own = {name: value for name, value in step.coefficients.items() if not name.startswith("mixed")}
    mixed = {name: value for name, value in step.coefficients.items() if name.startswith("mixed")}
    return "\n".join([
        "# NVIDIA GPUs of three generations under three engines. Written by `diptych fit --gpu`.",
        f"chips = [{chips}]",
        *_terms("decode", own, source), *_terms("mixed", mixed, source), *_terms("prefill", first.coefficients, source),
        *_terms("factors", first.exponents, source),
    ]) + "\n"  # fmt: skip


def _terms(name: str, found: dict[str, float], source: str) -> list[str]:
    today = datetime.now(UTC).date().isoformat()
    lines = ["", f"[{name}]"]
    for key, value in found.items():
        unit, factor = LAYER_UNITS.get(key, ("1", 1.0))
        held = abs(value - 1.0) < HELD
        kind, note = ("published", "; held at the published peak") if held else ("measured", "")
        lines.append(f'{key} = {{ value = {value * factor:.5g}, unit = "{unit}", kind = "{kind}", '
                     f'source = "{source}{note}", date = "{today}" }}')  # fmt: skip
    return lines
