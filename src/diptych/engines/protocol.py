"""What an engine must do to take part. Two narrow protocols; an engine implements one or both.

A prefill engine computes in steps that its worker interleaves between requests, so fairness and cancellation are
written once, above it. A decode engine batches by itself, so it is asynchronous and many streams run at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.errors import WorkerLost
from diptych.handoff.contract import KVForm
from diptych.types import Sampling, TokenChunk

Arrays = Sequence[NDArray[Any]]


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
        wrote them is resumed with its last chunk or closed; a worker that keeps KV for a while holds on to them, and
        what changed meanwhile cannot be handed over again. Raises HandoffError when the landing area is lost.
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


@runtime_checkable
class KeepsKV(Protocol):
    """A power of a prefill engine: KV that came from elsewhere goes into its prefix cache."""

    def lacking(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(start, stop): what of ``tokens`` could be kept and is not held yet. Callable from any thread."""

    def keep(self, tokens: Sequence[int], start: int, landed: LandedKV) -> int:
        """Takes over the KV of ``tokens`` from ``start`` on; returns how many of them are held now.

        On the engine's thread. Raises HandoffError when the proof fails; nothing is kept then.
        """


class LandedKV(Protocol):
    """Sealed KV of ``tokens`` tokens, in the decode engine's form, that waits where the other side wrote it."""

    @property
    def tokens(self) -> int: ...

    def admit(self, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Copies the KV into ``blocks``, the engine's private memory, and checks the copy.

        One array an image of the engine's form, K of every layer in order, then V: [tokens, row bytes] where tokens
        come first, else [outer, tokens, bytes]. May run in a thread. Raises HandoffError when counts, state or
        digests do not hold; ``blocks`` is then in doubt and must not be used.
        """


class DecodeEngine(Protocol):
    """Emits tokens."""

    def describe(self) -> Description: ...

    def decode(
        self, request_id: str, prompt: Sequence[int], landed: LandedKV | None, sampling: Sampling
    ) -> AsyncGenerator[TokenChunk, None]:
        """Tokens after ``prompt``. With ``landed``, the KV of its first tokens is taken over from there: of all but the
        last one or, where a lost worker's stream goes on here, of fewer.

        Closing the generator frees the slot. Raises EngineError, or HandoffError before the first token when the
        engine's own count does not confirm the takeover.
        """

    async def close(self) -> None: ...


@runtime_checkable
class GivesKV(Protocol):
    """A power of a decode engine: it gives the KV of a finished request, in the form that it describes."""

    async def give(self, tokens: Sequence[int], start: int) -> tuple[Arrays, Arrays]:
        """K and V a layer of ``tokens`` from ``start`` on, once nothing else runs. Raises EngineError where they are
        not held (any more)."""


Layers = tuple[NDArray[np.float16 | np.float32], ...]


class Reading(NamedTuple):
    """What an engine made of a prompt by its own prefill: KV of every token, one array [tokens, row] a layer, and
    the natural-log probabilities of the next token over the whole vocabulary."""

    keys: Layers
    values: Layers
    logprobs: NDArray[np.float32]
    prefill_ms: float


class VerifiableDecode(DecodeEngine, Protocol):
    """A decode engine whose pairs can be qualified: it shows what it computes."""

    async def own_reading(self, prompt: Sequence[int]) -> Reading:
        """Reads ``prompt`` itself, re-using nothing."""

    async def next_logprobs(self, prompt: Sequence[int], landed: LandedKV) -> NDArray[np.float32]:
        """Log-probabilities of the token after ``prompt``, read from landed KV of all but its last token."""

    async def ended(self) -> WorkerLost:
        """Returns when the engine's own process has ended, with the reason."""
