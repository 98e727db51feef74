"""Published single points as data: ``catalogue/measurements/published.toml``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from diptych.chips.gpu import Format
from diptych.chips.quantity import Quantity

Role = Literal["fit", "judge", "print"]


class WaferPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens a second of one stream. ``acceptance`` is assumed: whether a figure has speculation is rarely said."""

    model: str
    format: Format
    acceptance: float
    role: Role
    decode: Quantity


class TrainiumPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    chips: int
    prompt: int
    role: Role
    ttft: Quantity
    tpot: Quantity


class TransferPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Time to move the KV of ``prompt`` tokens from one engine to another."""

    model: str
    prompt: int
    role: Role
    time: Quantity


class PairPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    prefill_chip: str
    decode_chip: str
    model: str
    prompt: int
    output: int
    role: Role
    prefill: Quantity
    decode: Quantity


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wafer: tuple[WaferPoint, ...]
    trainium: tuple[TrainiumPoint, ...]
    transfer: tuple[TransferPoint, ...]
    pair: tuple[PairPoint, ...]


@cache
def published() -> Published:
    """Every point, in the order of the file."""
    text = (files(__package__) / "catalogue" / "measurements" / "published.toml").read_bytes()
    return msgspec.toml.decode(text, type=Published)
