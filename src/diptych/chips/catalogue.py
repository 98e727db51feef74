"""Chips and models as data: TOML files in ``catalogue/``, every number with its source. A new one is a file, no code.

A file outside the catalogue is named by its path (it ends in ``.toml``), so a private chip needs no fork.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from diptych.chips.geometry import Geometry
from diptych.chips.quantity import KINDS, Kind, Quantity, check
from diptych.errors import ConfigError

T = TypeVar("T")
Family = Literal["gpu", "cpu", "trainium", "wafer"]


class Flops(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dense FLOP/s by number format. A format the chip lacks runs at the rate given for it, or is left out."""

    bf16: Quantity
    fp8: Quantity
    fp4: Quantity | None = None


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    capacity: Quantity
    bandwidth: Quantity


class Links(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction: to its neighbours in the machine, and to the network."""

    scale_up: Quantity
    nic: Quantity


class Footprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one chip takes, its share of the host counted where the source counts it."""

    power: Quantity
    rack_units: Quantity
    price: Quantity


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The smallest thing that can be bought: ``chips`` of one kind and the host around them."""

    id: str
    chips: int
    nic: Quantity
    power: Quantity
    rack_units: Quantity
    price: Quantity


class Wafer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What only a wafer has: the time from one wafer to the next, and how many wafers one system holds."""

    hop: Quantity
    wafers: Quantity


class Chip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accelerator. ``machines`` are what it is sold in; a chip without them is its own machine."""

    id: str
    name: str
    family: Family
    flops: Flops
    memory: Memory
    links: Links
    footprint: Footprint
    wafer: Wafer | None = None
    machine: tuple[Machine, ...] = ()

    @property
    def machines(self) -> tuple[Machine, ...]:
        return self.machine or (_lone(self),)

    def machine_of(self, chips: int) -> Machine:
        """The smallest machine that holds ``chips``; the largest there is when none does."""
        by_size = sorted(self.machines, key=lambda machine: machine.chips)
        return next((machine for machine in by_size if machine.chips >= chips), by_size[-1])

    def flops_of(self, dtype: str) -> Quantity:
        """Dense FLOP/s in ``dtype``; falls back to the next wider format that the chip has."""
        wider = {"fp4": self.flops.fp4 or self.flops.fp8, "fp8": self.flops.fp8}.get(dtype, self.flops.bf16)
        return wider if wider.known else self.flops.bf16


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model's card says, to check the geometry against."""

    total_params: Quantity
    active_params: Quantity


class Model(msgspec.Struct, frozen=True):
    """A model by its geometry, and how that geometry is known."""

    id: str
    aliases: tuple[str, ...]
    geometry: Geometry
    card: Card
    kind: Kind
    source: str
    date: str


DIMENSIONS = {
    "bf16": "flops", "fp8": "flops", "fp4": "flops", "capacity": "bytes", "bandwidth": "bandwidth",
    "scale_up": "bandwidth", "nic": "bandwidth", "power": "power", "rack_units": "rack", "price": "price",
    "hop": "time", "wafers": "ratio", "total_params": "ratio", "active_params": "ratio",
}  # fmt: skip
"""What the number of each name measures."""


@cache
def chip(name: str) -> Chip:
    """The chip of that id, or of the file at that path. Raises ConfigError naming the file, line and cure."""
    return _load_chip(_find("chips", name))


@cache
def model(name: str) -> Model:
    """The model of that id or alias, or of the file at that path. Raises ConfigError."""
    if name.endswith(".toml"):
        return _load_model(_find("models", name))
    known = _models()
    if (found := known.get(name.lower())) is None:
        raise ConfigError(f"no model {name!r} in the catalogue; known are {', '.join(model_ids())}")
    return found


def chip_ids() -> list[str]:
    return _ids("chips")


def model_ids() -> list[str]:
    return _ids("models")


@cache
def _models() -> dict[str, Model]:
    loaded = [_load_model(_find("models", name)) for name in model_ids()]
    return {name.lower(): one for one in loaded for name in (one.id, *one.aliases)}


def _ids(shelf: str) -> list[str]:
    entries = (files(__package__) / "catalogue" / shelf).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def _find(shelf: str, name: str) -> Traversable:
    if name.endswith(".toml"):
        return Path(name)
    if name not in _ids(shelf):
        raise ConfigError(f"no {shelf[:-1]} {name!r} in the catalogue; known are {', '.join(_ids(shelf))}")
    return files(__package__) / "catalogue" / shelf / f"{name}.toml"


def _load_chip(file: Traversable) -> Chip:
    text, data = _read(file)
    chip = _convert(file, text, data, Chip)
    _check_all(file, text, data)
    return chip


def _load_model(file: Traversable) -> Model:
    text, data = _read(file)
    shape = data.get("geometry", {})
    known_by = {key: shape.pop(key, None) for key in ("source", "date", "kind")}
    for key, value in known_by.items():
        if not value:
            raise ConfigError(f'{_at(file, text, "geometry")}: [geometry] needs {key} = "..." for its numbers')
    loaded = _convert(file, text, {**data, **known_by}, Model)
    _check_all(file, text, {"card": data.get("card", {})})
    return loaded


def _read(file: Traversable) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not a readable TOML file: {error}") from None


def _convert(file: Traversable, text: str, data: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        found = re.search(r"\$\.([\w.\[\]]+)", str(error))
        keys = re.sub(r"\[.*?\]", "", found[1]).split(".") if found else []
        hint = ""
        if "Expected `object`, got" in str(error):
            hint = '; a number is written { value = 1, unit = "...", kind = "...", source = "...", date = "..." }'
        elif "enum" in str(error) and keys[-1:] == ["kind"]:
            hint = f"; kinds are {', '.join(KINDS)}"
        raise ConfigError(f"{_at(file, text, *keys)}: {error}{hint}") from None


def _check_all(file: Traversable, text: str, table: dict[str, Any]) -> None:
    for key, value in table.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and "unit" in inner:
                check(f"{_at(file, text, key)}: {key}", msgspec.convert(inner, Quantity), DIMENSIONS[key])
            elif isinstance(inner, dict):
                _check_all(file, text, inner)


def _at(file: Traversable, text: str, *keys: str) -> str:
    """``file:line`` of the line that sets the last of ``keys`` that begins a line (or opens its table)."""
    lines = list(enumerate(text.splitlines(), 1))
    for key in reversed(keys):
        pattern = re.compile(rf"\s*(\[+\s*)?{re.escape(key)}\b")
        for number, content in lines:
            if pattern.match(content):
                return f"{file if isinstance(file, Path) else file.name}:{number}"
    return f"{file if isinstance(file, Path) else file.name}:1"


def _lone(chip: Chip) -> Machine:
    foot = chip.footprint
    return Machine(chip.id, 1, chip.links.nic, foot.power, foot.rack_units, foot.price)
