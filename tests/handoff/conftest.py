"""Small KV whose every value says where it belongs, so that any mix-up shows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diptych.handoff import forms
from diptych.handoff.contract import Geometry, KVForm
from diptych.handoff.landing import Landing

GEOMETRY = Geometry(layers=3, kv_heads=2, head_dim_k=8, head_dim_v=8)


@pytest.fixture
def source() -> KVForm:
    return forms.hugging_face(GEOMETRY, "model")


@pytest.fixture
def target() -> KVForm:
    return forms.llama_cpp(GEOMETRY, "model", "interleaved")


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    assert list(path.iterdir()) == [], "something was left in shared memory"
    shutil.rmtree(path)


@pytest.fixture
def landing(directory: Path) -> Iterator[Landing]:
    made = Landing(directory, 1 << 20, receiver="decode-0")
    yield made
    made.close()


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 that bf16 holds exactly, as its bit pattern."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def kv(form: KVForm, tokens: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random bf16 K and V as [head, token, dim] per layer."""
    rng = np.random.default_rng(seed)
    geometry = form.geometry
    return tuple(  # type: ignore[return-value]
        [
            bf16(rng.standard_normal((geometry.kv_heads, tokens, head_dim)).astype(np.float32))
            for _ in range(geometry.layers)
        ]
        for head_dim in (geometry.head_dim_k, geometry.head_dim_v)
    )


def buffers(form: KVForm, tokens: int) -> list[np.ndarray]:
    """Private engine buffers, full of rubbish."""
    return [np.full((image.outer, image.units(tokens), image.unit_bytes), 0xA5, np.uint8) for image in form.images]


def chunks(tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, tokens, size):
        yield slice(start, min(tokens, start + size))
