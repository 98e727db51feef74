"""Stored numbers to float32 and back, in numpy: the exact statement of what every cast does.

Decided once, for every dtype, and tested value by value:
- a finite value never becomes an infinity: beyond the largest finite value it saturates there, sign kept;
- everything else rounds to nearest, ties to even (q8_0: ties away from zero, as llama.cpp), through the
  subnormals to a signed zero where the dtype has one;
- a NaN stays a NaN (quiet, sign kept) and an infinity that infinity where the dtype has them; f8e4m3 has no
  infinity and takes NaN; i8 and q8_0 have neither, so such a value is refused: CorruptKV.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import CorruptKV
from diptych.handoff.contract import Dtype, Tensor

F32 = NDArray[np.float32]
Items = NDArray[Any]

_BASE: dict[Dtype, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
    "f8e4m3": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "q8_0": np.dtype(np.int8),
}
_LIMIT: dict[Dtype, float] = {"f8e4m3": 448.0, "i8": 127.0, "q8_0": 127.0}
"""The largest number of each dtype that needs a scale."""

_F16_MAX = np.float32(65504.0)
_BF16_MAX = np.float32(2.0**127 * (2 - 2.0**-7))


def storage(tensor: Tensor) -> np.dtype[Any]:
    """The array dtype of one stored item: bit patterns except for float32; a record where scales are
    inline.
    """
    base = _BASE[tensor.dtype]
    if tensor.group == 1:
        return base
    scale = "<f2" if tensor.dtype == "q8_0" else "<f4"
    return np.dtype([("scale", scale), ("numbers", base, tensor.group)])


def decode(items: Items, tensor: Tensor, scale: float = 1.0, scales: F32 | None = None) -> F32:
    """Values of ``items`` [..., item] as float32 [..., dim].

    ``scale`` is the layer's static one, ``scales`` [..., dim / group] those that are stored apart.
    """
    if tensor.group > 1:
        wide = _numbers(items["numbers"], tensor.dtype) * items["scale"].astype(np.float32)[..., None]
        return wide.reshape(*items.shape[:-1], -1)
    values = _numbers(items, tensor.dtype)
    if scales is not None:
        grouped = values.reshape(*values.shape[:-1], -1, tensor.scale.group) * scales[..., None]
        return grouped.reshape(values.shape)
    return values if scale == 1.0 else values * np.float32(scale)


def encode(values: F32, tensor: Tensor, scale: float = 1.0) -> tuple[Items, F32 | None]:
    """``values`` [..., dim] as stored items, and their scales where those are stored apart."""
    if tensor.dtype == "q8_0" or tensor.scale.scheme in {"inline", "apart"}:
        return _quantised(values, tensor)
    numbers = values if scale == 1.0 else values / np.float32(scale)
    return _stored(numbers, tensor.dtype), None


def _quantised(values: F32, tensor: Tensor) -> tuple[Items, F32 | None]:
    group = 32 if tensor.dtype == "q8_0" else tensor.scale.group
    grouped = values.reshape(*values.shape[:-1], -1, group)
    largest = np.max(np.abs(grouped), axis=-1, initial=0.0, where=np.isfinite(grouped))
    scales = (largest / np.float32(_LIMIT[tensor.dtype])).astype(np.float32)
    inverse = np.divide(np.float32(1.0), scales, out=np.zeros_like(scales), where=scales > 0)
    numbers = _stored(_saturate(grouped * inverse[..., None], np.float32(3e38)), tensor.dtype)
    if tensor.scale.scheme == "apart":
        return numbers.reshape(values.shape), scales
    items = np.empty(scales.shape, storage(tensor))
    items["numbers"] = numbers
    items["scale"] = np.minimum(scales, _F16_MAX) if tensor.dtype == "q8_0" else scales
    return items, None


def _numbers(items: Items, dtype: Dtype) -> F32:
    if dtype == "bf16":
        wide: F32 = (items.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return wide
    if dtype == "f16":
        return items.view(np.float16).astype(np.float32)
    if dtype == "f8e4m3":
        taken: F32 = _F8[items.view(np.uint8)]
        return taken
    return items.astype(np.float32)


def _stored(numbers: F32, dtype: Dtype) -> Items:
    if dtype == "f32":
        return numbers
    if dtype == "bf16":
        return _to_bf16(numbers)
    if dtype == "f16":
        half = _saturate(numbers, _F16_MAX).astype(np.float16).view(np.uint16)
        return np.where(np.isnan(numbers), half | 0x200, half)
    if dtype == "f8e4m3":
        return _to_f8(numbers)
    if not np.isfinite(numbers).all():
        raise CorruptKV(f"a value that is not finite cannot be stored as {dtype}")
    whole = np.trunc(numbers + np.copysign(0.5, numbers)) if dtype == "q8_0" else np.rint(numbers)
    return np.clip(whole, -127, 127).astype(np.int8)


def _saturate(values: F32, limit: np.float32) -> F32:
    finite: F32 = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    return finite


def _to_bf16(values: F32) -> Items:
    bits = _saturate(values, _BF16_MAX).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)


def _f8_values() -> F32:
    """Value of every f8e4m3 byte: 4 exponent bits (bias 7), 3 mantissa bits, no infinity, 0x7F and 0xFF are
    NaN.
    """
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp(1.0 + mantissa / 8, exponent - 7)
    positive = np.where(exponent > 0, normal, np.ldexp(mantissa / 8, -6))
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


_F8 = _f8_values()


def _to_f8(values: F32) -> Items:
    magnitude = np.minimum(np.abs(np.where(np.isfinite(values), values, np.float32(0))), np.float32(448.0))
    _, exponent = np.frexp(magnitude)  # magnitude = m * 2**exponent with 0.5 <= m < 1
    step = np.ldexp(np.float32(1.0), np.maximum(exponent, -5) - 4)
    code = np.searchsorted(_F8[:127], np.rint(magnitude / step) * step).astype(np.uint8)
    code = np.where(np.isfinite(values), code, np.uint8(0x7F))
    signed: Items = code | (np.signbit(values).astype(np.uint8) << 7)
    return signed
