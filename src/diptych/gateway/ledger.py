"""What requests cost, by day, key and model. Pure but for the clock that it is given; kept in memory.

cost = input x (prompt - cached) + cached x cached + output x made          each price for a million tokens
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from diptych.config import Prices
from diptych.types import RequestRecord

DAYS_KEPT = 62
_MILLION = 1_000_000


class Line(msgspec.Struct):
    """One day, key and model."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Ledger:
    """``clock`` gives Unix seconds; days are UTC's."""

    def __init__(self, prices: Prices | None = None, clock: Callable[[], float] = time.time) -> None:
        self.prices = prices
        self._clock = clock
        self._days: OrderedDict[str, dict[tuple[str, str], Line]] = OrderedDict()

    def charge(self, record: RequestRecord, key: str | None) -> None:
        """Enters a request that is over, and its key and cost into its record. One without any token costs nothing."""
        record.key = key
        if record.output_tokens == 0:
            return
        if self.prices is not None:
            record.cost = cost_of(self.prices, record)
        line = self._line(key or "", record.model)
        line.requests += 1
        line.input_tokens += record.prompt_tokens
        line.cached_tokens += record.cached_tokens
        line.output_tokens += record.output_tokens
        line.cost += record.cost or 0.0

    def _line(self, key: str, model: str) -> Line:
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        lines = self._days.setdefault(day, {})
        while len(self._days) > DAYS_KEPT:
            self._days.popitem(last=False)
        return lines.setdefault((key, model), Line())

    def report(self, key: str | None = None, day: str | None = None) -> dict[str, Any]:
        """The lines, newest day first; those of one key or day alone where asked."""
        usage = [
            {"day": at, "key": name or None, "model": model, **msgspec.structs.asdict(line)}
            for at, lines in reversed(self._days.items())
            for (name, model), line in sorted(lines.items())
            if day in (None, at) and key in (None, name)
        ]
        return {"currency": None if self.prices is None else self.prices.currency, "usage": usage}


def cost_of(prices: Prices, record: RequestRecord) -> float:
    """In the prices' currency."""
    cached_price = prices.input if prices.cached is None else prices.cached
    read = record.prompt_tokens - record.cached_tokens
    total = prices.input * read + cached_price * record.cached_tokens + prices.output * record.output_tokens
    return total / _MILLION
