"""What every measurement of the handoff shares: the bytes, a landing, and medians of alternating rounds.

The bytes are the KV of a 2,048-token prompt of the default model (47 MB as f16).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.handoff import forms
from diptych.handoff.contract import Geometry
from diptych.handoff.landing import Landing

TOKENS, CHUNK, ROUNDS = 2048, 256, 9
GEOMETRY = Geometry(layers=30, kv_heads=3, head_dim_k=64, head_dim_v=64)
ROWS = forms.llama_cpp(GEOMETRY, "bench", "interleaved")
CACHE = forms.hugging_face(GEOMETRY, "bench")
LANDING_BYTES = 4 * ROWS.region_bytes(TOKENS)

Array = NDArray[Any]
Arrays = tuple[list[Array], list[Array]]


class Rate(msgspec.Struct, frozen=True):
    """1e9 bytes a second: the median over the rounds, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float


def alternate(ways: dict[str, Callable[[], float | None]]) -> dict[str, Rate]:
    """The rate of each, in alternating rounds, so that a busy machine slows them alike; the first round warms up.

    A way returns the seconds that it took, or None to be timed here.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, call in ways.items():
            started = time.perf_counter()
            told = call()
            seconds[name].append(time.perf_counter() - started if told is None else told)
    return {name: rate(times[1:]) for name, times in seconds.items()}


def rate(seconds: list[float]) -> Rate:
    """The rate at which the bytes were moved that often."""
    size = ROWS.region_bytes(TOKENS) / 1e9
    return Rate(size / median(seconds), size / max(seconds), size / min(seconds))


@contextmanager
def landing_in_memory() -> Iterator[Landing]:
    directory = Path(tempfile.mkdtemp(prefix="diptych-bench-", dir="/dev/shm"))
    try:
        landing = Landing(directory, LANDING_BYTES, receiver="bench")
        yield landing
        landing.close()
    finally:
        shutil.rmtree(directory)


def part(arrays: Arrays, axis: int, start: int) -> Arrays:
    at = (slice(None),) * axis
    keys, values = ([array[(*at, slice(start, start + CHUNK))] for array in plane] for plane in arrays)
    return keys, values


def cache() -> Arrays:
    """bf16 as an engine has it, [head, token, dim]."""
    rng = np.random.default_rng(0)
    keys, values = (
        [
            (rng.standard_normal((3, TOKENS, 64), dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for _ in range(30)
        ]
        for _ in range(2)
    )
    return keys, values


def rows() -> Arrays:
    keys, values = ([np.ascontiguousarray(array.transpose(1, 0, 2)) for array in plane] for plane in cache())
    return keys, values


def write(write: Callable[..., None], arrays: Arrays) -> None:
    for start in range(0, TOKENS, CHUNK):
        write(start, *part(arrays, 0, start))
