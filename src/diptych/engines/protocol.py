"""What an engine must do to take part. Two narrow protocols; an engine implements one or both.

A prefill engine computes in steps that its worker interleaves between requests, so fairness and cancellation are
written once, above it. A decode engine batches by itself, so it is asynchronous and many streams run at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from diptych.handoff.contract import KVForm
from diptych.types import Sampling, TokenChunk


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is and can hold.

    ``build`` names the library and version; with the model's fingerprint, ``form`` and ``dtype`` it keys a
    qualification. ``slots`` sequences of at most ``context_tokens`` tokens run at once.
    """

    engine: str
    build: str
    device: str
    model: str
    fingerprint: str
    form: KVForm
    slots: int
    context_tokens: int


class KVSink(Protocol):
    """Where a prefill engine puts the KV that it computed."""

    def write(self, token_start: int, keys: Sequence[object], values: Sequence[object]) -> None:
        """Takes one chunk: per layer an array of the engine's form, covering tokens from ``token_start``.

        May return before the chunk is converted; the arrays must stay unchanged until the generator that
        wrote them is resumed with its last chunk or closed. Raises HandoffError when the landing area is lost.
        """


class PrefillEngine(Protocol):
    """Reads prompts."""

    def describe(self) -> Description: ...

    def prefill(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        """Computes the KV of ``prompt`` chunk by chunk, yielding the tokens done after each chunk.

        The generator's return value is how many of the tokens came from the prefix cache. Closing it between
        chunks cancels the rest.
        """

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` whose KV need not be computed again."""

    def close(self) -> None: ...


class LandedKV(Protocol):
    """Sealed KV of ``tokens`` tokens in the decode engine's form, waiting in the landing area."""

    tokens: int

    def admit(self, blocks: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Copies it into the engine's private ``blocks``, one per image of the form, and proves that copy.

        The engine calls it once, in a thread, when it has a slot. Raises HandoffError; ``blocks`` are then in
        doubt and must not be used.
        """


class DecodeEngine(Protocol):
    """Emits tokens."""

    def describe(self) -> Description: ...

    def decode(
        self, request_id: str, prompt: Sequence[int], landed: LandedKV | None, sampling: Sampling
    ) -> AsyncGenerator[TokenChunk, None]:
        """Tokens after ``prompt``. With ``landed``, the KV of all but its last token is taken over from there.

        Closing the generator frees the slot. Raises EngineError, or HandoffError before the first token when the
        engine's own count does not confirm the takeover.
        """

    async def close(self) -> None: ...
