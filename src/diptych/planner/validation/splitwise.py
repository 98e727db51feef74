"""Splitwise's table of Llama-2-70B and BLOOM-176B on A100 and H100: one measured worker a row of its own.

Prefill is a curve over the tokens of one pass (it jumps between 2,048 and 4,096), times a factor where a pass holds
several prompts; decode is a line in batch and context.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

import msgspec

from diptych.chips.fit import curve, fit_positive
from diptych.chips.stepcost import CurveCost
from diptych.errors import ConfigError
from diptych.planner.validation.table import Score, score

DECODE_TARGET, PREFILL_TARGET, ACROSS_TARGET = 0.05, 0.08, 0.12
HELD_OUT = ((2, 8, 32), (4, 16))
LARGEST = 64
"""Printed and not judged, and never fitted to."""
KNEES = (1024, 1536, 2048, 3000, 4000)


class Row(msgspec.Struct, frozen=True):
    worker: tuple[str, str, int]
    prompt: int
    batch: int
    output: int
    prefill_s: float
    step_s: float

    @property
    def tokens(self) -> int:
        return self.prompt * self.batch

    @property
    def context(self) -> float:
        """Mean KV tokens of all sequences over the output."""
        return self.batch * (self.prompt + self.output / 2)


class Worker(msgspec.Struct, frozen=True):
    """A measured worker: its curve, and the factor on a pass that holds several prompts."""

    cost: CurveCost
    several: float

    def prefill_s(self, row: Row) -> float:
        alone = self.cost.prefill_s(row.tokens)
        return alone * (self.several if row.batch > 1 else 1.0)

    def step_s(self, row: Row) -> float:
        return self.cost.decode_s(row.batch, int(row.context))


def read(path: Path) -> tuple[list[Row], dict[str, int]]:
    """The rows, and how many each rule left out. Raises ConfigError naming file and line."""
    rows, excluded = [], {"power-capped": 0, "70B TP2 batch 64": 0}
    with path.open(newline="", encoding="utf-8") as file:
        for line, record in enumerate(csv.DictReader(file), 2):
            try:
                row = Row(
                    (record["model"], record["hardware"], int(record["tensor_parallel"])),
                    int(record["prompt_size"]), int(record["batch_size"]), int(record["token_size"]),
                    float(record["prompt_time"]) / 1e3, float(record["token_time"]) / 1e3,
                )  # fmt: skip
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigError(f"{path}:{line}: not a row of Splitwise's table: {error}") from None
            if row.worker[1].endswith("pcap"):
                excluded["power-capped"] += 1
            elif row.worker[0] == "llama2-70b" and row.worker[2] == 2 and row.batch == 64:
                excluded["70B TP2 batch 64"] += 1
            else:
                rows.append(row)
    return rows, excluded


def fit(rows: list[Row]) -> Worker:
    """A worker from its own rows."""
    single = [(float(r.tokens), r.prefill_s) for r in rows if r.batch == 1]
    fixed, sequence, token = fit_positive([[1.0, r.batch, r.context] for r in rows], [r.step_s for r in rows])
    cost = CurveCost(
        points=curve(single), decode_fixed_s=fixed, decode_sequence_s=sequence, decode_token_s=token,
        kv_capacity_tokens=0,
    )  # fmt: skip
    by_batch: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.batch > 1:
            by_batch[row.batch].append(row.prefill_s / cost.prefill_s(row.tokens))
    logs = [math.log(median(ratios)) for ratios in by_batch.values()]
    return Worker(cost, math.exp(fmean(logs)) if logs else 1.0)


class Across(msgspec.Struct, frozen=True):
    """Prefill of one model on one chip for any tensor parallelism: two lines that meet at a jump."""

    knee: int
    coefficients: tuple[float, ...]

    def prefill_s(self, row: Row) -> float:
        terms = _across_terms(row, self.knee)
        return sum(c * t for c, t in zip(self.coefficients, terms, strict=True))


def fit_across(rows: list[Row]) -> Across:
    """The knee among ``KNEES`` with the smallest squared relative error."""

    def error(found: Across) -> float:
        return fmean((found.prefill_s(row) / row.prefill_s - 1.0) ** 2 for row in rows)

    seconds = [row.prefill_s for row in rows]
    fits = [Across(k, tuple(fit_positive([_across_terms(r, k) for r in rows], seconds))) for k in KNEES]
    return min(fits, key=error)


def _across_terms(row: Row, knee: int) -> list[float]:
    tp, above = row.worker[2], max(0, row.tokens - knee)
    attended = row.batch * row.prompt**2
    jump = float(above > 0)
    split = [1.0 / tp, row.tokens / tp, attended / tp, jump / tp, above / tp]
    return [1.0, *split, float(row.tokens), jump, float(above)]


def judge(path: Path) -> list[Score]:
    """Batches held out, two sets of them; the largest batch shown."""
    rows, excluded = read(path)
    largest = [row for row in rows if row.batch == LARGEST]
    rows = [row for row in rows if row.batch < LARGEST]
    scores = [s for held in HELD_OUT for s in _judge_held(rows, held, excluded)]
    workers = {worker: fit(own) for worker, own in _by_worker(rows).items()}
    steps = [(workers[r.worker].step_s(r), r.step_s) for r in largest]
    reads = [(workers[r.worker].prefill_s(r), r.prefill_s) for r in largest]
    return [
        *scores,
        score("splitwise", f"decode, batch {LARGEST} (not judged)", steps, fit_rows=len(rows)),
        score("splitwise", f"prefill, batch {LARGEST} (not judged)", reads, fit_rows=len(rows)),
    ]


def _judge_held(rows: list[Row], held: tuple[int, ...], excluded: dict[str, int]) -> list[Score]:
    seen = [row for row in rows if row.batch not in held]
    judged = [row for row in rows if row.batch in held]
    workers = {worker: fit(own) for worker, own in _by_worker(seen).items()}
    chips = {chip: fit_across([r for r in seen if r.worker[:2] == chip]) for chip in {r.worker[:2] for r in seen}}
    steps = [(workers[r.worker].step_s(r), r.step_s) for r in judged]
    reads = [(workers[r.worker].prefill_s(r), r.prefill_s) for r in judged]
    across = [(chips[r.worker[:2]].prefill_s(r), r.prefill_s) for r in judged]
    what = f"batches {held} held out"
    n = len(seen)
    return [
        score("splitwise", f"decode, {what}", steps, fit_rows=n, target=DECODE_TARGET, excluded=excluded),
        score("splitwise", f"prefill, {what}", reads, fit_rows=n, target=PREFILL_TARGET),
        score("splitwise", f"prefill, one model across TP, {what}", across, fit_rows=n, target=ACROSS_TARGET),
    ]


def _by_worker(rows: list[Row]) -> dict[tuple[str, str, int], list[Row]]:
    grouped: defaultdict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.worker].append(row)
    return dict(grouped)
