"""A running engine, KV to hand over to it, and the rule by which answers are compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.engines.llamacpp.engine import LlamaCppDecode, Rows
from diptych.engines.llamacpp.settings import Settings
from diptych.engines.llamacpp.slotfile import Bytes
from diptych.engines.protocol import LandedKV
from diptych.models.resolve import ModelBundle
from diptych.types import FinishReason, Sampling, TokenLogprob


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory in shared memory that must be empty when the test is done with it."""
    directory = Path(tempfile.mkdtemp(prefix="diptych-test-", dir="/dev/shm"))
    try:
        yield directory
        assert sorted(directory.iterdir()) == []
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def running(bundle: ModelBundle, **changes: Any) -> AsyncGenerator[LlamaCppDecode]:
    """An engine with its own server, which leaves nothing behind."""
    with private_directory() as directory:
        options = {"ctx_per_request": 512, "slot_dir": str(directory)} | changes
        engine = await LlamaCppDecode.start(Settings(**options), bundle)
        try:
            yield engine
        finally:
            await engine.close()


class Landed:
    """KV that an engine exported itself, handed over as if it came from elsewhere."""

    def __init__(self, rows: Rows) -> None:
        self.tokens = len(rows.keys[0]) - 1
        self.rows = [array[:-1] for array in (*rows.keys, *rows.values)]

    def admit(self, blocks: Sequence[Bytes]) -> None:
        for block, row in zip(blocks, self.rows, strict=True):
            block[:] = row.view(np.uint8)


class Answer(NamedTuple):
    """One request's whole answer."""

    tokens: tuple[int, ...]
    finish: FinishReason | None
    logprobs: tuple[TokenLogprob, ...]

    def gap(self, position: int) -> float:
        """Nats between the two most probable tokens at ``position``."""
        (_, first), (_, second) = self.logprobs[position].top[:2]
        return first - second


async def answer(
    engine: LlamaCppDecode, prompt: Sequence[int], landed: LandedKV | None = None, **sampling: Any
) -> Answer:
    """Greedy over 16 tokens with logprobs, unless told otherwise."""
    options = {"max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 2} | sampling
    chunks = [chunk async for chunk in engine.decode("r", prompt, landed, Sampling(**options))]
    assert all(chunk.finish is None for chunk in chunks[:-1])
    return Answer(
        tuple(token for chunk in chunks for token in chunk.tokens),
        chunks[-1].finish,
        tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
    )


def same_but_for_near_ties(seen: Answer, alone: Answer) -> bool:
    """Equal, or parted first where ``alone`` hardly preferred its token: batching flips those too."""
    assert len(seen.tokens) == len(alone.tokens)
    pairs = enumerate(zip(seen.tokens, alone.tokens, strict=True))
    parted = next((position for position, (a, b) in pairs if a != b), None)
    return parted is None or alone.gap(parted) < 0.5
