"""Any form to any form and back, re-paged, re-sharded, re-quantised; random, against plain numpy."""

from __future__ import annotations

import itertools

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.errors import CorruptKV, IncompatibleForms
from diptych.handoff import codecs, convert, forms, layout
from diptych.handoff.contract import Geometry, KVForm, Rope, Scale, Span, Tensor
from diptych.handoff.forms import KNOWN, Holding
from diptych.handoff.layout import Chunk
from diptych.handoff.plan import plan
from diptych.handoff.region import Region
from diptych.handoff.shards import Route, even, routes

settings.register_profile(
    "handoff", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("handoff")

GEOMETRIES = [
    Geometry(layers=2, kv_heads=2, head_dim_k=8, head_dim_v=8),
    Geometry(layers=3, kv_heads=1, head_dim_k=12, head_dim_v=4),  # MQA, unequal heads
    Geometry(layers=1, kv_heads=4, head_dim_k=6, head_dim_v=10),
    Geometry(layers=2, kv_heads=1, head_dim_k=20, head_dim_v=0),  # MLA: one latent, no V
    Geometry(layers=2, kv_heads=2, head_dim_k=32, head_dim_v=64, windows=(0, 16)),
]
PACKED = {"vllm-lbhnc", "vllm-lbnhc", "vllm-blhnc", "vllm-cpu", "frames"}


def logical(geometry: Geometry, tokens: int, seed: int) -> dict[str, np.ndarray]:
    """Values that every dtype here holds exactly: small integers times 1/8, [layer, token, head, dim]."""
    rng = np.random.default_rng(seed)
    return {
        plane: (rng.integers(-31, 32, (geometry.layers, tokens, geometry.kv_heads, dim)) / 8).astype(np.float32)
        for plane, dim in (("k", geometry.head_dim_k), ("v", geometry.head_dim_v))
    }


PLAIN = Tensor(axes=("token", "head", "dim"), dtype="f32")


def canonical(geometry: Geometry, rope: Rope) -> KVForm:
    what = Holding(geometry=geometry, fingerprint="m", dtype="f32", rope=rope)
    return forms.apart("canonical", what, forms.ROWS)


def move(source: KVForm, target: KVForm, memory: np.ndarray, tokens: int, chunk: int | None = None) -> np.ndarray:
    """Converts a whole region, chunk by chunk where the source is not paged."""
    out = np.full(target.region_bytes(tokens), 0xEE, np.uint8)
    region = Region(target, out, tokens)
    keys, values = layout.arrays(source, memory, tokens)
    if chunk is None or source.block_tokens or source.packed:
        convert.execute(plan(source, target), 0, Chunk.of(source, keys, values, tokens), region)
        return out
    for start in range(0, tokens, chunk):
        part = [
            [_cut(a, t, slice(start, start + chunk)) for a in arrays]
            for arrays, t in ((keys, source.keys), (values, source.values))
        ]
        convert.execute(plan(source, target), start, Chunk.of(source, *part), region)
    return out


def _cut(array, tensor: Tensor, tokens: slice):
    if isinstance(array, tuple):
        return tuple(_cut(part, tensor, tokens) for part in array)
    return array[tuple(tokens if axis == "token" else slice(None) for axis in tensor.axes)]


def as_region(geometry: Geometry, values: dict[str, np.ndarray]) -> np.ndarray:
    planes = [values["k"]] + ([values["v"]] if geometry.head_dim_v else [])
    return np.concatenate([plane.reshape(-1) for plane in planes]).view(np.uint8)


known = st.sampled_from(sorted(KNOWN))
blocks = st.sampled_from([1, 2, 4, 16])
pairings = st.sampled_from(["half", "interleaved"])


def form_of(name: str, geometry: Geometry, dtype: str, pairing: str, block: int) -> KVForm:
    what = Holding(geometry=geometry, fingerprint="m", dtype=dtype, rope=Rope(pairing=pairing))
    return KNOWN[name](what, block)


@given(
    geometry=st.sampled_from(GEOMETRIES),
    names=st.tuples(known, known),
    dtypes=st.tuples(*[st.sampled_from(["f32", "f16", "bf16"])] * 2),
    pairing=st.tuples(pairings, pairings),
    block=st.tuples(blocks, blocks),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_form_to_any_form_and_back(geometry, names, dtypes, pairing, block, tokens, seed) -> None:
    one, two = (form_of(*given) for given in zip(names, [geometry] * 2, dtypes, pairing, block, strict=True))
    start = canonical(geometry, one.rope)
    memory = as_region(geometry, logical(geometry, tokens, seed))
    first = move(start, one, memory, tokens)
    there = move(one, two, first, tokens)
    back = move(two, one, there, tokens)
    np.testing.assert_array_equal(back, first)
    np.testing.assert_array_equal(move(one, start, back, tokens), memory)
    # composition: through a third form it is the same as directly
    np.testing.assert_array_equal(there, move(start, two, memory, tokens))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_forms_to_the_byte(name: str) -> None:
    geometry = Geometry(layers=2, kv_heads=2, head_dim_k=4, head_dim_v=4)
    tokens, block = 6, 4
    values = logical(geometry, tokens, 1)
    target = form_of(name, geometry, "f32", "half", block)
    got = move(canonical(geometry, Rope(pairing="half")), target, as_region(geometry, values), tokens)
    k, v = values["k"], values["v"]  # [layer, token, head, dim]
    pad = np.zeros((2, 2, 2, 4), np.float32)
    kb, vb = (np.concatenate([a, pad], 1).reshape(2, 2, block, 2, 4) for a in (k, v))  # [L, block, slot, H, D]
    both = np.concatenate([kb, vb], -1)
    want = {
        "hugging-face": lambda: [k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)],
        "llama.cpp": lambda: [k, v],
        "llama.cpp-trans": lambda: [k, v.transpose(0, 2, 3, 1)],
        "vllm-nhd": lambda: [kb, vb],
        "vllm-hnd": lambda: [kb.transpose(0, 1, 3, 2, 4), vb.transpose(0, 1, 3, 2, 4)],
        "vllm-lbhnc": lambda: [both.transpose(0, 1, 3, 2, 4)],
        "vllm-lbnhc": lambda: [both],
        "vllm-blhnc": lambda: [both.transpose(1, 0, 3, 2, 4)],
        "vllm-cpu": lambda: [
            np.concatenate(
                [
                    kb.transpose(0, 1, 3, 4, 2).reshape(2, 2, 2, -1),
                    vb.transpose(0, 1, 3, 2, 4).reshape(2, 2, 2, -1),
                ],
                -1,
            )
        ],
        "frames": lambda: [np.stack([k, v], 2).transpose(1, 0, 2, 3, 4)],
    }[name]()
    # the layers' order: dense planes are K of all layers and then V of all layers
    np.testing.assert_array_equal(got.view(np.float32), np.concatenate([part.reshape(-1) for part in want]))


SCHEMES = [
    ("q8_0", Scale(), 1 / 127),
    ("i8", Scale(scheme="tensor", values=(4 / 127,)), 1 / 127),
    ("i8", Scale(scheme="inline", group=8), 1 / 127),
    ("i8", Scale(scheme="apart", group=16), 1 / 127),
    ("f8e4m3", Scale(), 1 / 16),
    ("f8e4m3", Scale(scheme="tensor", values=(0.01, 0.02)), 1 / 16),
    ("f8e4m3", Scale(scheme="inline", group=32), 1 / 16),
    ("f8e4m3", Scale(scheme="apart", group=8), 1 / 16),
]


@pytest.mark.parametrize(("dtype", "scale", "tolerance"), SCHEMES)
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_quantised_forms_keep_values_within_their_tolerance(name, dtype, scale, tolerance) -> None:
    geometry = Geometry(layers=2, kv_heads=2, head_dim_k=32, head_dim_v=64)
    what = Holding(geometry=geometry, fingerprint="m", dtype=dtype, scale=scale, rope=Rope(pairing="interleaved"))
    target = KNOWN[name](what, 4)
    start = canonical(geometry, Rope(pairing="half"))
    grouped = scale.scheme in {"inline", "apart"} or dtype == "q8_0"
    if (name in PACKED and scale.scheme == "apart") or (name in {"llama.cpp-trans", "vllm-cpu"} and grouped):
        with pytest.raises(IncompatibleForms, match="scale"):
            plan(start, target)
        return
    rng = np.random.default_rng(2)
    memory = as_region(
        geometry,
        {
            plane: np.clip(rng.standard_normal((2, 11, 2, dim)), -4, 4).astype(np.float32)
            for plane, dim in (("k", 32), ("v", 64))
        },
    )
    there = move(start, target, memory, 11, chunk=4)
    np.testing.assert_array_equal(there, move(start, target, memory, 11))
    back = move(target, start, there, 11).view(np.float32)
    bound = tolerance * (4 if dtype in {"i8", "q8_0"} else np.abs(memory.view(np.float32)) + 2**-5)
    assert (np.abs(back - memory.view(np.float32)) <= bound).all()
    # what has been quantised once does not drift
    again = move(target, start, move(start, target, back.view(np.uint8), 11), 11).view(np.float32)
    np.testing.assert_allclose(again, back, rtol=1e-6, atol=1e-7)
    # the same form moves bit by bit, also through other chunks
    np.testing.assert_array_equal(move(target, target, there, 11), there)


def test_q8_0_is_ggmls_to_the_bit() -> None:
    rng = np.random.default_rng(7)
    rows = np.concatenate([rng.standard_normal((50, 64)), np.zeros((1, 64)), rng.standard_normal((5, 64)) * 1e-9])
    rows = rows.astype(np.float32)
    tensor = Tensor(axes=("token", "head", "dim"), dtype="q8_0")
    mine, _ = codecs.encode(rows, tensor)
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(mine.view(np.uint8).reshape(theirs.shape), theirs)
    np.testing.assert_array_equal(
        codecs.decode(mine, tensor), gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q8_0)
    )


def test_every_f8_byte_and_every_nearest_value() -> None:
    torch = pytest.importorskip("torch")
    tensor = Tensor(axes=("token", "head", "dim"), dtype="f8e4m3")
    every = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(every.copy()).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(codecs.decode(every, tensor), theirs)
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.uniform(-448, 448, 4000), rng.standard_normal(4000) * 2.0 ** rng.integers(-14, 6, 4000),
        theirs[np.isfinite(theirs)], [2.0**-10, 2.0**-11, 1.5 * 2.0**-9, 3 * 2.0**-10, 447.9, 0.0, -0.0],
    ]).astype(np.float32)  # fmt: skip
    inside = values[np.abs(values) <= 448]
    want = torch.from_numpy(inside).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(codecs.encode(inside, tensor)[0], want)
    odd = np.array([449, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
    assert codecs.encode(odd, tensor)[0].tolist() == [0x7E, 0x7E, 0xFE, 0x7F, 0xFF, 0x7F]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("q8_0", Scale()),
        ("i8", Scale(scheme="inline", group=8)),
        ("i8", Scale(scheme="tensor", values=(1.0,))),
    ],
)
def test_what_integers_cannot_say_is_refused(bad: float, dtype: str, scale: Scale) -> None:
    values = np.ones((1, 1, 32), np.float32)
    values[0, 0, 3] = bad
    with pytest.raises(CorruptKV, match="not finite"):
        codecs.encode(values, Tensor(axes=("token", "head", "dim"), dtype=dtype, scale=scale))


def test_f8_groups_with_a_nan_keep_the_rest() -> None:
    tensor = Tensor(axes=("token", "head", "dim"), dtype="f8e4m3", scale=Scale(scheme="inline", group=8))
    values = np.arange(8, dtype=np.float32)[None, None]
    values[0, 0, 2] = np.nan
    items, _ = codecs.encode(values, tensor)
    back = codecs.decode(items, tensor)
    assert np.isnan(back[0, 0, 2])
    np.testing.assert_allclose(np.delete(back, 2), np.delete(values, 2), rtol=1 / 16)


# Pages


@given(
    name=st.sampled_from(["vllm-nhd", "vllm-hnd", "vllm-lbhnc", "vllm-blhnc", "vllm-cpu"]),
    block=blocks,
    target_block=blocks,
    tokens=st.integers(1, 50),
    seed=st.integers(0, 50),
)
def test_scattered_blocks_of_a_pool_are_found_through_the_table(name, block, target_block, tokens, seed) -> None:
    geometry = GEOMETRIES[0]
    source = form_of(name, geometry, "bf16", "half", block)
    target = form_of("vllm-lbnhc", geometry, "f16", "interleaved", target_block)
    start = canonical(geometry, Rope(pairing="half"))
    memory = as_region(geometry, logical(geometry, tokens, seed))
    dense = move(start, source, memory, tokens)
    want = move(source, target, dense, tokens)
    needed = -(-tokens // block)
    rng = np.random.default_rng(seed)
    table = rng.permutation(needed + 5)[:needed]
    pools = (
        [_scatter(a, table, needed + 5) for a in layout.arrays(source, dense, tokens)[0]],
        [_scatter(a, table, needed + 5) for a in layout.arrays(source, dense, tokens)[1]],
    )
    out = np.full_like(want, 0xEE)
    chunk = Chunk.of(source, *pools, tokens, table.tolist())
    convert.execute(plan(source, target), 0, chunk, Region(target, out, tokens))
    np.testing.assert_array_equal(out, want)


def _scatter(dense: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    """Block by block into a pool full of rubbish; every paged form here has its blocks outermost."""
    units = dense.reshape(len(table), -1)
    pool = np.full((size, units.shape[1]), 0x55, dense.dtype)
    pool[table] = units
    return pool.reshape(-1) if dense.ndim == 1 else pool.reshape(size, *dense.shape[1:])


@pytest.mark.parametrize("table", [[0, 7], [0, -1], [0], [], [0, 1 << 40]])
@pytest.mark.parametrize("name", ["vllm-nhd", "vllm-cpu"])
def test_a_table_that_points_outside_is_refused(name: str, table: list[int]) -> None:
    source = form_of(name, GEOMETRIES[0], "bf16", "half", 4)
    target = form_of("llama.cpp", GEOMETRIES[0], "f16", "half", 4)
    arrays = layout.arrays(source, np.zeros(source.region_bytes(12), np.uint8), 12)
    region = Region(target, np.zeros(target.region_bytes(8), np.uint8), 8)
    with pytest.raises(CorruptKV):
        convert.execute(plan(source, target), 0, Chunk.of(source, *arrays, 8, table), region)


def test_pages_beyond_the_last_token_are_zero() -> None:
    target = form_of("vllm-cpu", GEOMETRIES[0], "f16", "half", 16)
    start = canonical(GEOMETRIES[0], Rope(pairing="half"))
    ones = np.ones(start.region_bytes(5) // 4, np.float32).view(np.uint8)
    got = move(start, target, ones, 5).view(np.float16)
    assert got.sum() == 2 * 5 * 2 * 16
    assert set(got.tolist()) == {0.0, 1.0}


# Shards


def part_of(values: dict[str, np.ndarray], part: tuple[Span, Span]) -> dict[str, np.ndarray]:
    layers, heads = part
    return {name: a[layers.start : layers.stop, :, heads.start : heads.stop] for name, a in values.items()}


@given(
    names=st.tuples(known, known),
    source=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2])),
    target=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3])),
    tokens=st.integers(1, 20),
)
@example(names=("vllm-hnd", "llama.cpp"), source=(4, 1), target=(1, 1), tokens=9)
@example(names=("hugging-face", "vllm-cpu"), source=(2, 1), target=(8, 1), tokens=9)
def test_shards_reassemble_to_the_whole(names, source, target, tokens) -> None:
    geometry = Geometry(layers=3, kv_heads=4, head_dim_k=8, head_dim_v=8)
    whole = logical(geometry, tokens, 4)
    held, wanted = (even(3, 4, tp, pp) for tp, pp in (source, target))
    got = [{n: np.full_like(a, np.nan) for n, a in part_of(whole, part).items()} for part in wanted]
    for route in routes(held, wanted):
        _, pieces = _hand_over(names, geometry, whole, held, route, tokens)
        layers, heads = route.part
        first_layer, first_head = wanted[route.target][0].start, wanted[route.target][1].start
        for plane, piece in pieces.items():
            place = got[route.target][plane][
                layers.start - first_layer : layers.stop - first_layer,
                :,
                heads.start - first_head : heads.stop - first_head,
            ]  # fmt: skip
            assert np.isnan(place).all(), "written twice"
            place[...] = piece
    for part, mine in zip(wanted, got, strict=True):
        for plane, want in part_of(whole, part).items():
            np.testing.assert_array_equal(mine[plane], want)


def _hand_over(names, geometry, whole, held, route: Route, tokens):
    """One part from its holder's form into the receiver's; returns it as [layer, token, head, dim] again."""
    what = Holding(geometry=geometry, fingerprint="m", dtype="bf16", rope=Rope(pairing="half"))
    mine, theirs = (
        msgspec.structs.replace(what, layers=layers, heads=heads) for layers, heads in (held[route.source], route.part)
    )
    source, target = KNOWN[names[0]](mine, 4), KNOWN[names[1]](theirs, 2)
    start, end = (
        msgspec.structs.replace(canonical(geometry, what.rope), layers=w.layers, heads=w.heads) for w in (mine, theirs)
    )
    memory = as_region(geometry, {n: np.ascontiguousarray(a) for n, a in part_of(whole, held[route.source]).items()})
    region = move(source, target, move(start, source, memory, tokens), tokens)
    back = move(target, end, region, tokens).view(np.float32)
    layers, heads = route.part
    return route, dict(zip("kv", back.reshape(2, layers.size, tokens, heads.size, 8), strict=True))


def test_routes_say_what_nobody_holds() -> None:
    with pytest.raises(IncompatibleForms, match=r"layers 0\.\.3, heads 2\.\.4"):
        routes([(Span(0, 3), Span(0, 2))], [(Span(0, 3), Span(0, 4))])
    four_to_one = routes(even(30, 8, 4), even(30, 8))
    assert [r.source for r in four_to_one] == [0, 1, 2, 3]
    two_to_eight = routes(even(30, 8, 2), even(30, 8, 8))
    assert [(r.source, r.target) for r in two_to_eight] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 4),
        (1, 5),
        (1, 6),
        (1, 7),
    ]
    assert {r.source for r in routes(even(30, 2, 4), even(30, 2))} == {
        0,
        2,
    }  # a head that two ranks hold comes once


# Forms that cannot be


PAGED = ("block", "token", "head", "dim")


@pytest.mark.parametrize(
    ("name", "strides", "offset"),
    [
        ("overlap", (64, 16, 8, 2), 8),
        ("outside", (64, 32, 8, 2), 56),
        ("too few", (64, 32, 8), 16),
        ("backwards", (64, -32, 8, 2), 16),
    ],
)
def test_strides_that_collide_are_refused(name, strides, offset) -> None:
    geometry = Geometry(layers=1, kv_heads=2, head_dim_k=4, head_dim_v=4)
    keys = Tensor(axes=PAGED, dtype="bf16", strides=(64, 32, 8, 2))
    values = Tensor(axes=PAGED, dtype="bf16", strides=strides, offset=offset)
    form = KVForm(
        name="f",
        fingerprint="m",
        geometry=geometry,
        keys=keys,
        values=values,
        rope=Rope(pairing="half"),
        block_tokens=2,
    )
    good = msgspec.structs.replace(form, values=msgspec.structs.replace(keys, offset=16))
    plan(good, good)
    with pytest.raises(IncompatibleForms, match=r"strides"):
        plan(form, form)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("i8", Scale()),
        ("f16", Scale(scheme="tensor", values=(1.0,))),
        ("q8_0", Scale(scheme="tensor", values=(1.0,))),
        ("i8", Scale(scheme="tensor", values=(1.0, 2.0, 3.0))),
        ("i8", Scale(scheme="tensor")),
        ("i8", Scale(scheme="tensor", values=(0.0,))),
        ("f8e4m3", Scale(scheme="tensor", values=(float("nan"),))),
        ("i8", Scale(scheme="inline", group=7)),
        ("i8", Scale(scheme="apart")),
    ],
)
def test_scales_that_make_no_sense_are_refused(dtype, scale) -> None:
    what = Holding(geometry=GEOMETRIES[0], fingerprint="m", dtype=dtype, scale=scale)
    form = forms.apart("x", what, forms.ROWS)
    with pytest.raises(IncompatibleForms, match="scale"):
        plan(form, form)


def test_every_pair_of_known_forms_has_a_plan() -> None:
    what = Holding(geometry=GEOMETRIES[0], fingerprint="m")
    for one, two in itertools.product(KNOWN, KNOWN):
        assert plan(KNOWN[one](what, 16), KNOWN[two](what, 32)).identity == (one == two and one in NOT_PAGED)


NOT_PAGED = {"hugging-face", "llama.cpp", "llama.cpp-trans", "frames"}
