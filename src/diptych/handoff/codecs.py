"""Stored numbers to float32 and back, in numpy: the exact statement of what every cast does.

Decided once, for every dtype, and tested value by value:
- a NaN stays a NaN (quiet, its sign kept), an infinity stays that infinity where the dtype has one;
- a finite value never becomes an infinity: beyond the largest finite value it saturates there, sign kept;
- everything else rounds to nearest, ties to even, through the subnormals to a signed zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.handoff.contract import Dtype

F32 = NDArray[np.float32]
Stored = NDArray[Any]

STORAGE: dict[Dtype, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
}
"""The array dtype in which the converter handles each dtype: bit patterns, except float32."""

_F16_MAX = np.float32(65504.0)
_BF16_MAX = np.float32(2.0**127 * (2 - 2.0**-7))


def decode(stored: Stored, dtype: Dtype) -> F32:
    """Stored values as float32; exact for every dtype here."""
    if dtype == "bf16":
        wide: F32 = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return wide
    if dtype == "f16":
        return stored.view(np.float16).astype(np.float32)
    return stored.view(np.float32)


def encode(values: F32, dtype: Dtype) -> Stored:
    """float32 values in ``dtype``'s storage, by the rules at the top."""
    if dtype == "bf16":
        return _to_bf16(values)
    if dtype == "f16":
        half = _saturate(values, _F16_MAX).astype(np.float16).view(np.uint16)
        return np.where(np.isnan(values), half | 0x200, half)
    return values


def _saturate(values: F32, limit: np.float32) -> F32:
    finite: F32 = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    return finite


def _to_bf16(values: F32) -> Stored:
    bits = _saturate(values, _BF16_MAX).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)
