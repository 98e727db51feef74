"""The hot casts, compiled by numba: rows of 16-bit or float32 values into rows of 16-bit values.

Two results are packed into one 32-bit store, which is what lets LLVM vectorise a re-pairing:

    half -> interleaved    out[j]         = a[j]     | a[n/2 + j] << 16       n values, n/2 words
    interleaved -> half    out[j]         = a[4j]    | a[4j + 2]  << 16       first half of the words
                           out[n/4 + j]   = a[4j + 1]| a[4j + 3]  << 16       second half
    none                   out[j]         = a[2j]    | a[2j + 1]  << 16

Source and target are [block, token, head, dim], ``dim`` with stride 1; a token is found through the source's
table of blocks, in the target in order. Storage that is not paged is one block.

Everything else goes through :mod:`codecs` in numpy, which is also what these kernels are tested
against. Compiled code is kept in numba's cache: beside this file, or in the user's cache folder where that
is read-only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, register_jitable

from diptych.handoff.contract import Dtype

Kernel = Callable[..., None]
PLAIN, TO_INTERLEAVED, TO_HALF = 0, 1, 2
MODES: dict[str, int] = {"none": PLAIN, "interleaved": TO_INTERLEAVED, "half": TO_HALF}
"""By the pairing that the target wants, "none" where the dimensions only move."""

_WORDS = types.Array(types.uint32, 4, "A")
_TABLE = types.Array(types.int64, 1, "C")
_LINES = types.Array(types.uint8, 1, "C")
_LINES_FROM = types.Array(types.uint8, 1, "C", readonly=True)


@intrinsic
def _f32_of_bits(_typing: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of_f32(_typing: Any, _value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _f16_of_f32(_typing: Any, _value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _f32_of_f16(_typing: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _first(_typing: Any, array: Any) -> Any:
    """A pointer to an array's first item: no wrap-around to check, and LLVM sees that a row's items are neighbours."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def _stream_line(_typing: Any, target: Any, source: Any, _index: Any) -> Any:
    """Copies the 64 bytes at ``index`` past the caches."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), 8)
        to, fro = (
            builder.bitcast(
                builder.gep(context.make_array(kind)(context, builder, array).data, [args[2]]),
                line.as_pointer(),
            )
            for kind, array in zip(signature.args[:2], args[:2], strict=True)
        )
        store = builder.store(builder.load(fro, align=1), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(target, source, types.int64), generate


@intrinsic
def _fence(_typing: Any) -> Any:
    """Nothing that follows is seen before the streamed lines are."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@register_jitable
def _same(bits: Any) -> Any:
    return bits


@register_jitable
def _f16(bits: Any) -> Any:
    """float32 bits as f16 bits; finite values beyond 65504 saturate there."""
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    largest = np.uint32(np.uint32(bits & np.uint32(0x80000000)) | np.uint32(0x477FE000))
    over = (magnitude > np.uint32(0x477FE000)) & (magnitude < np.uint32(0x7F800000))
    return _f16_of_f32(_f32_of_bits(largest if over else np.uint32(bits)))


@register_jitable
def _bf16_to_f16(bits: Any) -> Any:
    return _f16(np.uint32(np.uint32(bits) << np.uint32(16)))


@register_jitable
def _f32_to_f16(value: Any) -> Any:
    return _f16(_bits_of_f32(value))


@register_jitable
def _f32_to_bf16(value: Any) -> Any:
    bits = _bits_of_f32(value)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    sign = np.uint32(bits & np.uint32(0x80000000))
    finite = min(magnitude, np.uint32(0x7F7F0000))
    odd = np.uint32(np.uint32(finite >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(finite + np.uint32(np.uint32(0x7FFF) + odd))
    special = np.uint32(magnitude | np.uint32(0x400000)) if magnitude > np.uint32(0x7F800000) else magnitude
    result = special if magnitude >= np.uint32(0x7F800000) else rounded
    return np.uint16(np.uint32(np.uint32(result | sign) >> np.uint32(16)))


@register_jitable
def _f16_to_bf16(bits: Any) -> Any:
    return _f32_to_bf16(_f32_of_f16(bits))


@register_jitable
def _pack(low: Any, high: Any) -> Any:
    return np.uint32(low) | np.uint32(np.uint32(high) << np.uint32(16))


_CASTS: dict[tuple[Dtype, Dtype], tuple[Callable[[Any], Any], Any]] = {
    ("f16", "f16"): (_same, types.uint16),
    ("bf16", "bf16"): (_same, types.uint16),
    ("bf16", "f16"): (_bf16_to_f16, types.uint16),
    ("f16", "bf16"): (_f16_to_bf16, types.uint16),
    ("f32", "f16"): (_f32_to_f16, types.float32),
    ("f32", "bf16"): (_f32_to_bf16, types.float32),
}


@functools.cache
def kernel(source: Dtype, target: Dtype, mode: int) -> Kernel | None:
    """The kernel of one cast and re-pairing, compiled or loaded at the first call; None where there is
    none.
    """
    found = _CASTS.get((source, target))
    return None if found is None else _compile(*found, mode)


def _compile(cast: Callable[[Any], Any], item: Any, mode: int) -> Kernel:  # noqa: C901  numba wants one loop
    """``cast`` is a plain function and ``mode`` a number, so numba's cache knows them across processes."""

    def rows(source: Any, blocks: Any, target: Any, tokens: int) -> None:
        _, source_slots, heads, dims = source.shape
        target_slots, n = target.shape[1], dims // 2
        size = source.itemsize
        s0, s1, s2 = source.strides[0] // size, source.strides[1] // size, source.strides[2] // size
        w0, w1, w2 = target.strides[0] // 4, target.strides[1] // 4, target.strides[2] // 4
        items, words = _first(source), _first(target)
        source_block = source_slot = target_block = target_slot = 0
        for _ in range(tokens):
            s = blocks[source_block] * s0 + source_slot * s1
            w = target_block * w0 + target_slot * w1
            for _ in range(heads):
                if mode == TO_INTERLEAVED:
                    for j in range(n):
                        words[w + j] = _pack(cast(items[s + j]), cast(items[s + n + j]))
                elif mode == TO_HALF:
                    for j in range(n // 2):
                        a = s + 4 * j
                        words[w + j] = _pack(cast(items[a]), cast(items[a + 2]))
                        words[w + n // 2 + j] = _pack(cast(items[a + 1]), cast(items[a + 3]))
                else:
                    for j in range(n):
                        words[w + j] = _pack(cast(items[s + 2 * j]), cast(items[s + 2 * j + 1]))
                s, w = s + s2, w + w2
            source_slot, target_slot = source_slot + 1, target_slot + 1
            if source_slot == source_slots:
                source_slot, source_block = 0, source_block + 1
            if target_slot == target_slots:
                target_slot, target_block = 0, target_block + 1

    return _jit(types.void(types.Array(item, 4, "A", readonly=True), _TABLE, _WORDS, types.int64), rows)


def _jit(signature: Any, function: Callable[..., None]) -> Kernel:
    """Compiled without the interpreter's lock; loaded from numba's cache where there is a folder for one."""
    try:
        compiled: Kernel = njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        compiled = njit(signature, nogil=True)(function)
    return compiled


@functools.cache
def stream() -> Kernel:
    """(source, target): copies flat arrays of whole 64-byte lines, the target aligned to 64, past the caches.

    A plain copy first reads the lines that it is about to overwrite; this one does not, and leaves the
    caches to whatever computes beside it.
    """

    def lines(source: Any, target: Any) -> None:
        for index in range(0, source.size, 64):
            _stream_line(target, source, index)
        _fence()

    return _jit(types.void(_LINES_FROM, _LINES), lines)
