"""Chunks of any size into blocks of any size: the same bytes as all at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import CorruptKV
from diptych.handoff import convert
from diptych.handoff.contract import Geometry, Rope
from diptych.handoff.forms import KNOWN, Holding
from diptych.handoff.layout import Chunk, arrays
from diptych.handoff.plan import plan
from diptych.handoff.rechunk import Rechunker
from diptych.handoff.region import Region

from .conftest import kv

GEOMETRY = Geometry(layers=2, kv_heads=2, head_dim_k=8, head_dim_v=8)
SOURCE = KNOWN["hugging-face"](Holding(geometry=GEOMETRY, fingerprint="m"), 0)


def target_of(name: str, block: int):
    return KNOWN[name](
        Holding(geometry=GEOMETRY, fingerprint="m", dtype="f16", rope=Rope(pairing="interleaved")), block
    )


@settings(deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    name=st.sampled_from(["vllm-hnd", "vllm-cpu", "vllm-blhnc", "llama.cpp", "llama.cpp-trans"]),
    block=st.sampled_from([1, 4, 16]),
)
def test_any_chunks_make_the_same_bytes(sizes: list[int], name: str, block: int) -> None:
    total, target = sum(sizes), target_of(name, block)
    keys, values = kv(SOURCE, total, 3)
    steps, want = plan(SOURCE, target), np.zeros(target.region_bytes(total), np.uint8)
    convert.execute(steps, 0, Chunk.of(SOURCE, keys, values), Region(target, want, total))
    got = np.full_like(want, 0xEE)
    region, rechunker, reached = Region(target, got, total), Rechunker(SOURCE, target.unit_tokens), 0
    pieces: list[tuple[int, int]] = []
    for size in sizes:
        part = slice(reached, reached + size)
        chunk = Chunk.of(SOURCE, [a[:, part] for a in keys], [a[:, part] for a in values])
        for start, piece in rechunker.add(reached, chunk):
            pieces.append((start, piece.tokens))
            convert.execute(steps, start, piece, region)
        reached += size
    for start, piece in rechunker.rest():
        pieces.append((start, piece.tokens))
        convert.execute(steps, start, piece, region)
    np.testing.assert_array_equal(got, want)
    ends = [0]
    for start, tokens in pieces:
        assert start == ends[-1]
        ends.append(start + tokens)
    assert ends[-1] == total


def test_a_chunk_that_does_not_follow_inside_a_block_is_refused() -> None:
    keys, values = kv(SOURCE, 6)
    chunk = Chunk.of(SOURCE, keys, values)
    with pytest.raises(CorruptKV, match="start of a block"):
        list(Rechunker(SOURCE, 4).add(2, chunk))
    rechunker = Rechunker(SOURCE, 4)
    assert [(start, piece.tokens) for start, piece in rechunker.add(0, chunk)] == [(0, 4)]
    with pytest.raises(CorruptKV, match="inside a block"):
        list(rechunker.add(8, chunk))


def test_a_paged_source_is_cut_between_its_blocks_only() -> None:
    source = target_of("vllm-hnd", 4)
    memory = np.zeros(source.region_bytes(12), np.uint8)
    chunk = Chunk.of(source, *arrays(source, memory, 12), 12)
    cut = [(start, piece.tokens, piece.blocks.tolist()) for start, piece in Rechunker(source, 8).add(0, chunk)]
    assert cut == [(0, 8, [0, 1])]
    with pytest.raises(CorruptKV, match="cannot be cut"):
        list(Rechunker(source, 6).add(0, Chunk.of(source, chunk.keys, chunk.values, 10)))
