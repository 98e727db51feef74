"""A number that knows where it comes from: value, unit, source, date and kind.

A planner's answer is no better than its worst input, so every input says how it is known:

    measured    somebody ran it and published the record
    published   the vendor or the model's author states it
    derived     computed from the above; the source says how
    assumed     a guess, named as one
    unknown     nobody says; there is no value, and what needs it is left out, with the reason
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from diptych.errors import ConfigError

Kind = Literal["measured", "published", "derived", "assumed", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""From the strongest to the weakest."""

UNITS: dict[str, tuple[str, float]] = {
    "FLOP/s": ("flops", 1.0),
    "TFLOP/s": ("flops", 1e12),
    "PFLOP/s": ("flops", 1e15),
    "B": ("bytes", 1.0),
    "GB": ("bytes", 1e9),
    "GiB": ("bytes", 2.0**30),
    "TB": ("bytes", 1e12),
    "B/s": ("bandwidth", 1.0),
    "GB/s": ("bandwidth", 1e9),
    "GiB/s": ("bandwidth", 2.0**30),
    "TB/s": ("bandwidth", 1e12),
    "TiB/s": ("bandwidth", 2.0**40),
    "PB/s": ("bandwidth", 1e15),
    "Gbit/s": ("bandwidth", 1e9 / 8),
    "Tbit/s": ("bandwidth", 1e12 / 8),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "us": ("time", 1e-6),
    "ns": ("time", 1e-9),
    "W": ("power", 1.0),
    "kW": ("power", 1e3),
    "U": ("rack", 1.0),
    "USD/h": ("price", 1.0),
    "tok/s": ("rate", 1.0),
    "1": ("ratio", 1.0),
}
"""Unit -> what it measures, and the factor to that thing's base unit."""


class Quantity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of the catalogue. ``value`` is in ``unit``; None exactly when ``kind`` is "unknown"."""

    unit: str
    source: str
    date: str
    kind: Kind
    value: float | None = None

    @property
    def known(self) -> bool:
        return self.value is not None

    @property
    def si(self) -> float:
        """The value in its base unit (FLOP/s, bytes, bytes/s, seconds, watts, U, USD/h). Known values only."""
        assert self.value is not None, "an unknown quantity has no value"
        return self.value * UNITS[self.unit][1]


def check(name: str, quantity: Quantity, dimension: str) -> None:
    """Refuses a quantity that is not what ``name`` needs. Raises ConfigError with the cure."""
    if quantity.unit not in UNITS or UNITS[quantity.unit][0] != dimension:
        fitting = ", ".join(unit for unit, (of, _) in UNITS.items() if of == dimension)
        raise ConfigError(f"{name}: unit {quantity.unit!r} does not measure {dimension}; use one of {fitting}")
    if not quantity.source.strip() or not quantity.date.strip():
        raise ConfigError(f"{name}: source and date must say where and when the number was found")
    if quantity.known == (quantity.kind == "unknown"):
        raise ConfigError(f'{name}: give a value, or kind = "unknown" without one')
    if quantity.value is None:
        return
    if not math.isfinite(quantity.value) or (quantity.value < 0 and dimension != "ratio"):
        raise ConfigError(f"{name}: {quantity.value} is not a finite number of at least 0")


def weakest(kinds: Iterable[Kind]) -> Kind:
    """The kind that a result inherits from its inputs: the weakest of them ("measured" for none)."""
    return max(kinds, key=KINDS.index, default="measured")
