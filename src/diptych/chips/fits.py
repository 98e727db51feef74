"""Fitted coefficients as data: ``catalogue/fits/*.toml``, one file a family, every number with its source."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec

from diptych.chips.quantity import UNITS, Kind, Quantity, check, weakest
from diptych.errors import ConfigError


class Fits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients of the terms of one family. ``factors`` are exponents of what a prefill is multiplied by.

    ``chips`` are those whose records were fitted; for any other chip of the family the coefficients are assumed. Empty,
    they are of whatever worker the file is given to.
    """

    chips: tuple[str, ...] = ()
    decode: dict[str, Quantity] = {}
    prefill: dict[str, Quantity] = {}
    mixed: dict[str, Quantity] = {}
    factors: dict[str, Quantity] = {}

    def kind(self) -> Kind:
        """The weakest kind among the coefficients."""
        return weakest(q.kind for q in self._all())

    def _all(self) -> Iterable[Quantity]:
        for table in (self.decode, self.prefill, self.mixed, self.factors):
            yield from table.values()


def values(table: dict[str, Quantity]) -> dict[str, float]:
    """Name -> number in base units, of the quantities that are known."""
    return {name: quantity.si for name, quantity in table.items() if quantity.known}


@cache
def fits(name: str) -> Fits:
    """The coefficients of that family, or of the file at that path. Raises ConfigError naming file and cure."""
    file = Path(name) if name.endswith(".toml") else files(__package__) / "catalogue" / "fits" / f"{name}.toml"
    try:
        loaded = msgspec.toml.decode(file.read_bytes(), type=Fits)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file of coefficients; write one with `diptych fit`") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    for section in ("decode", "prefill", "mixed", "factors"):
        for key, quantity in getattr(loaded, section).items():
            check(f"{file}: [{section}] {key}", quantity, UNITS.get(quantity.unit, ("a known thing", 1))[0])
    return loaded
