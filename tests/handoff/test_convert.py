"""Casts, re-pairing and layout, value by value, and the compiled kernels against numpy."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import xxhash
from numba import types
from numba.core.caching import CompileResultCacheImpl

from diptych.errors import CorruptKV, IncompatibleForms
from diptych.handoff import codecs, convert, forms, kernels
from diptych.handoff.contract import Geometry, KVForm, Rope, Span, Tensor
from diptych.handoff.layout import Chunk
from diptych.handoff.plan import plan
from diptych.handoff.region import Region

from .conftest import GEOMETRY, bf16, kv

PAGED = ("block", "token", "head", "dim")
EVERY_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def run(source: KVForm, target: KVForm, keys, values, chunk: int | None = None) -> np.ndarray:
    axis = source.keys.axes.index("token")
    tokens = keys[0].shape[axis]
    memory = np.full(target.region_bytes(tokens), 0xEE, np.uint8)
    region = Region(target, memory, tokens)
    for start in range(0, tokens, chunk or tokens):
        stop = min(tokens, start + (chunk or tokens))
        part = [np.take(a, range(start, stop), axis) for a in [*keys, *values]]
        write(source, target, start, (part[: len(keys)], part[len(keys) :]), region)
    return memory


def write(source: KVForm, target: KVForm, start: int, arrays, region: Region) -> bytes:
    return convert.execute(plan(source, target), start, Chunk.of(source, *arrays), region)


def tensor(dtype: str) -> Tensor:
    return Tensor(axes=("token", "head", "dim"), dtype=dtype)


def test_llama_cpp_rows_to_the_byte(source: KVForm, target: KVForm) -> None:
    keys, values = kv(source, 5)
    memory = run(source, target, keys, values)
    rows = memory.view(np.float16).reshape(2, 3, 5, 2, 8)
    for layer in range(3):
        k, v = (codecs.decode(array[layer], tensor("bf16")).transpose(1, 0, 2) for array in (keys, values))
        want = np.empty_like(k)
        for j in range(4):
            for h in range(2):
                want[..., 2 * j + h] = k[..., h * 4 + j]
        np.testing.assert_array_equal(rows[0, layer], want.astype(np.float16))
        np.testing.assert_array_equal(rows[1, layer], v.astype(np.float16))


def test_chunks_in_any_order_make_the_same_bytes(source: KVForm, target: KVForm) -> None:
    keys, values = kv(source, 11)
    whole = run(source, target, keys, values)
    np.testing.assert_array_equal(whole, run(source, target, keys, values, chunk=3))
    memory = np.zeros_like(whole)
    for start, stop in ((8, 11), (0, 5), (5, 8)):
        parts = [[a[:, start:stop] for a in arrays] for arrays in (keys, values)]
        write(source, target, start, parts, Region(target, memory, 11))
    np.testing.assert_array_equal(whole, memory)


def test_the_digest_is_of_the_bytes_that_were_written(source: KVForm, target: KVForm) -> None:
    keys, values = kv(source, 7)
    memory = np.zeros(target.region_bytes(7), np.uint8)
    digest = write(source, target, 0, (keys, values), Region(target, memory, 7))
    assert digest == xxhash.xxh3_128(memory.tobytes()).digest()


@pytest.mark.parametrize("stored", ["f16", "bf16"])
def test_every_16_bit_pattern_survives_a_change_of_pairing_only(stored: str) -> None:
    half = forms.hugging_face(Geometry(layers=1, kv_heads=1, head_dim_k=64, head_dim_v=64), "m", stored)
    other = forms.llama_cpp(half.geometry, "m", "interleaved", stored)
    patterns = EVERY_16.reshape(1, -1, 64)
    there = run(half, other, [patterns], [patterns]).view(np.uint16).reshape(2, 1, -1, 1, 64)
    back = run(other, half, [there[0, 0]], [there[1, 0]]).view(np.uint16)
    np.testing.assert_array_equal(back.reshape(2, -1), np.stack([EVERY_16, EVERY_16]))


def reference(values: np.ndarray, stored: str) -> np.ndarray:
    """What a cast must give, said differently from the code: the nearest of all values, ties to even."""
    if stored == "f16":
        grid = np.sort(np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64))
    else:
        grid = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    out = np.empty(values.shape, np.uint16)
    for index, value in np.ndenumerate(values):
        sign = 0x8000 if np.signbit(value) else 0
        if np.isnan(value):
            out[index] = 0xFFFF
        elif np.isinf(value):
            out[index] = sign | (0x7C00 if stored == "f16" else 0x7F80)
        else:
            above = int(np.searchsorted(grid, abs(float(value))))
            if above == len(grid):
                nearest = above - 1
            elif above == 0:
                nearest = 0
            else:
                low, high = abs(float(value)) - grid[above - 1], grid[above] - abs(float(value))
                nearest = above if high < low or (high == low and above % 2 == 0) else above - 1
            out[index] = sign | nearest
    return out


AWKWARD = np.array(
    [
        *(0.0, -0.0, 1.0, 65504.0, 65505.0, 65519.99, 65520.0, 65536.0, 1e30, -1e30),
        *(np.inf, -np.inf, np.nan, -np.nan),
        *(2.0**-14, 2.0**-15, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 3 * 2.0**-25, 2.0**-26, 1e-40, -1e-45),
        *(3.3895314e38, 3.3961775e38, 3.4e38, -3.4028235e38),
        *(1 / 3, -2 / 3, 2049.0, 2051.0, 1 + 2**-8, 1 + 3 * 2**-8),
    ],
    np.float32,
)


@pytest.mark.parametrize("stored", ["f16", "bf16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_float32_rounds_saturates_and_keeps_nan_and_infinity(stored: str, compiled: bool) -> None:
    rng = np.random.default_rng(5)
    random = rng.integers(0, 1 << 32, 2000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([AWKWARD, random, np.zeros(len(AWKWARD) % 2, np.float32)])
    values = values[: len(values) // 2 * 2].reshape(1, 1, -1)
    if compiled:
        got = np.empty(values.shape, np.uint16)
        loop = kernels.kernel("f32", stored, kernels.PLAIN)
        assert loop is not None
        loop(values[None], np.zeros(1, np.int64), got[None].view(np.uint32), 1)
    else:
        got, _ = codecs.encode(values, tensor(stored))
    want = reference(values, stored)
    nan = np.isnan(values)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(codecs.decode(got, tensor(stored))[nan]).all()
    np.testing.assert_array_equal(got[nan] & 0x8000 != 0, np.signbit(values[nan]))


@pytest.mark.parametrize(("have", "want"), [("bf16", "f16"), ("f16", "bf16")])
@pytest.mark.parametrize("mode", ["none", "interleaved", "half"])
def test_kernels_equal_numpy_on_every_16_bit_pattern(have: str, want: str, mode: str) -> None:
    cells = EVERY_16.reshape(1, -1, 4, 64)
    by_kernel = np.empty_like(cells)
    loop = kernels.kernel(have, want, kernels.MODES[mode])
    assert loop is not None
    loop(cells, np.zeros(1, np.int64), by_kernel.view(np.uint32), cells.shape[1])
    values = codecs.decode(cells, tensor(have))
    order = list(range(64))
    if mode == "interleaved":
        order = [h * 32 + j for j in range(32) for h in (0, 1)]
    elif mode == "half":
        order = [*range(0, 64, 2), *range(1, 64, 2)]
    by_numpy, _ = codecs.encode(values[..., order], tensor(want))
    np.testing.assert_array_equal(by_kernel, by_numpy)


def test_bf16_to_f16_decided_cases() -> None:
    cases = {0x7F80: 0x7C00, 0xFF80: 0xFC00, 0x477F: 0x7BF8, 0x4780: 0x7BFF, 0x7F7F: 0x7BFF, 0xFF7F: 0xFBFF}
    cases |= {0x3380: 0x0001, 0x3300: 0x0000, 0x3301: 0x0001, 0x0001: 0x0000, 0x8001: 0x8000, 0x3880: 0x0400}
    got = codecs.encode(codecs.decode(np.array(list(cases), np.uint16), tensor("bf16")), tensor("f16"))[0]
    assert dict(zip(cases, got.tolist(), strict=True)) == cases


@pytest.mark.parametrize("head_dim", [8, 10, 6, 7])
@pytest.mark.parametrize("rope", [Rope(pairing="half", start=2, dims=4), Rope(pairing="half", dims=4)])
def test_partial_rope_and_odd_sizes(head_dim: int, rope: Rope) -> None:
    geometry = Geometry(layers=1, kv_heads=3, head_dim_k=head_dim, head_dim_v=5)
    source = forms.hugging_face(geometry, "m", rope=rope)
    target = forms.llama_cpp(
        geometry, "m", "interleaved", rope=Rope(pairing="interleaved", start=rope.start, dims=rope.dims)
    )
    keys, values = kv(source, 4)
    memory = run(source, target, keys, values)
    got = memory[: 4 * 3 * head_dim * 2].view(np.float16).reshape(4, 3, head_dim)
    order = list(range(head_dim))
    s = rope.start
    order[s : s + 4] = [s, s + 2, s + 1, s + 3]
    want = codecs.decode(keys[0], tensor("bf16")).transpose(1, 0, 2)[..., order]
    np.testing.assert_array_equal(got, want.astype(np.float16))


def test_a_target_takes_its_part_of_layers_and_heads(source: KVForm, target: KVForm) -> None:
    part = msgspec.structs.replace(target, layers=Span(1, 3), heads=Span(1, 2))
    keys, values = kv(source, 6)
    whole = run(source, target, keys, values).view(np.float16).reshape(2, 3, 6, 2, 8)
    cut = run(source, part, keys, values).view(np.float16).reshape(2, 2, 6, 1, 8)
    np.testing.assert_array_equal(cut, whole[:, 1:3, :, 1:2])
    with pytest.raises(IncompatibleForms, match=r"layers: the source has \(1, 3\)"):
        plan(msgspec.structs.replace(source, layers=Span(1, 3)), target)


def test_strided_read_only_and_signed_views_are_taken(source: KVForm, target: KVForm) -> None:
    keys, values = kv(source, 6)
    cache = [np.zeros((2, 50, 8), np.int16) for _ in range(6)]
    for big, small in zip(cache, [*keys, *values], strict=True):
        big[:, 20:26] = small.view(np.int16)
        big.flags.writeable = False
    views = [big[:, 20:26] for big in cache]
    np.testing.assert_array_equal(
        run(source, target, keys, values),
        _direct(source, target, views[:3], views[3:]),
    )


def _direct(source: KVForm, target: KVForm, keys, values) -> np.ndarray:
    memory = np.zeros(target.region_bytes(6), np.uint8)
    write(source, target, 0, (keys, values), Region(target, memory, 6))
    return memory


@pytest.mark.parametrize(
    "spoil",
    [
        lambda k, v: (k[:2], v),
        lambda k, v: (k, v[:2]),
        lambda k, v: ([], v),
        lambda k, v: ([k[0], k[1][:, :2], k[2]], v),
        lambda k, v: ([k[0], k[1].astype(np.float32), k[2]], v),
        lambda k, v: ([a.transpose(1, 0, 2) for a in k], v),
        lambda k, v: ([a.reshape(-1) for a in k], v),
        lambda k, v: (k, [v[0], v[1], v[2][..., :4]]),
    ],
)
def test_arrays_of_another_form_are_refused(source: KVForm, target: KVForm, spoil) -> None:
    keys, values = spoil(*kv(source, 5))
    region = Region(target, np.zeros(target.region_bytes(5), np.uint8), 5)
    with pytest.raises(CorruptKV):
        write(source, target, 0, (keys, values), region)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fingerprint", {"fingerprint": "other"}),
        ("version", {"version": 2}),
        ("geometry.layers", {"geometry": Geometry(layers=4, kv_heads=2, head_dim_k=8, head_dim_v=8)}),
        ("geometry.head_dim_v", {"geometry": Geometry(layers=3, kv_heads=2, head_dim_k=8, head_dim_v=4)}),
        ("geometry.windows", {"geometry": msgspec.structs.replace(GEOMETRY, windows=(4, 0, 4))}),
        ("rope.pairing", {"rope": Rope(pairing="none")}),
        ("rope.span", {"rope": Rope(pairing="interleaved", dims=4)}),
        ("heads", {"heads": Span(0, 3)}),
        ("llama.cpp.k.axes", {"keys": Tensor(axes=("token", "dim"), dtype="f16")}),
        ("llama.cpp.k.axes", {"keys": Tensor(axes=("token", "head", "dim", "dim"), dtype="f16")}),
        ("llama.cpp.v.axes", {"block_tokens": 4, "keys": Tensor(axes=PAGED, dtype="f16")}),
        ("llama.cpp.v.scale.group", {"values": Tensor(axes=("token", "head", "dim"), dtype="q8_0")}),
    ],
)  # fmt: skip
def test_no_plan_says_which_property_stands_in_the_way(source: KVForm, target: KVForm, name, change) -> None:
    with pytest.raises(IncompatibleForms) as caught:
        plan(source, msgspec.structs.replace(target, **change))
    assert caught.value.name == name
    assert name in str(caught.value)


def test_a_plan_says_its_steps(source: KVForm, target: KVForm) -> None:
    assert "re-pair half -> interleaved" in plan(source, target).steps
    assert plan(target, target).identity
    assert not plan(source, target).identity
    assert target.bytes_per_token == 3 * 2 * 2 * 8 * 2


def test_forms_cross_the_wire(source: KVForm) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(source), type=KVForm) == source
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(source).replace(b"bf16", b"f12"), type=KVForm)


def test_bf16_helper_is_exact() -> None:
    assert codecs.decode(bf16(np.array([1.5, -2.0], np.float32)), tensor("bf16")).tolist() == [1.5, -2.0]


def test_warm_leaves_nothing_to_compile(source: KVForm, target: KVForm) -> None:
    kernels.kernel.cache_clear()
    convert.warm(plan(source, target))
    loaded = kernels.kernel.cache_info().misses
    keys, values = kv(source, 9)
    run(source, target, keys, values)
    assert kernels.kernel.cache_info().misses == loaded == 2


def test_kernels_come_from_the_cache_in_another_process_or_compile_without_one(tmp_path, monkeypatch) -> None:
    code = (
        "from diptych.handoff import kernels; loop = kernels.kernel('bf16', 'f16', 1)\n"
        "print(sum(loop.stats.cache_hits.values()), sum(loop.stats.cache_misses.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]]
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    loop = kernels._compile(kernels._bf16_to_f16, types.uint16, kernels.PLAIN)
    cells, got = np.array([[[[0x3F80, 0xC000]]]], np.uint16), np.zeros((1, 1, 1, 2), np.uint16)
    loop(cells, np.zeros(1, np.int64), got.view(np.uint32), 1)
    assert got.view(np.float16).tolist() == [[[[1.0, -2.0]]]]
