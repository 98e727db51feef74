"""An engine's chunks fitted to the target's blocks: only whole blocks can be placed.

    chunks     |---- 37 ----|------- 40 -------|--- 23 ---|       blocks of 16
    pieces     |-- 32 --|16 |------- 16 -------|16 | 16 |4|       the tail of each chunk waits for the next

What waits are views of the engine's arrays, unchanged until the handoff ends; only the one block that
two chunks share is copied together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from diptych.errors import CorruptKV
from diptych.handoff.contract import KVForm, Tensor
from diptych.handoff.layout import Chunk


class Rechunker:
    """Cuts chunks of form ``source`` at multiples of ``unit_tokens``."""

    def __init__(self, source: KVForm, unit_tokens: int) -> None:
        self._form, self._unit = source, unit_tokens
        self._waiting: tuple[int, Chunk] | None = None

    def add(self, token_start: int, chunk: Chunk) -> Iterator[tuple[int, Chunk]]:
        """(token_start, chunk) of every piece that can be placed now.

        Raises CorruptKV where a chunk starts inside a block and does not follow on the one before.
        """
        if self._waiting is not None:
            held_at, held = self._waiting
            missing = self._unit - held.tokens
            if token_start != held_at + held.tokens:
                raise CorruptKV(f"token {token_start} follows on {held_at + held.tokens} inside a block")
            taken = min(missing, chunk.tokens)
            joined = self._joined(held, self._cut(chunk, 0, taken))
            if taken < missing:
                self._waiting = (held_at, joined)
                return
            self._waiting = None
            yield held_at, joined
            token_start, chunk = token_start + taken, self._cut(chunk, taken, chunk.tokens)
        if chunk.tokens and token_start % self._unit:
            raise CorruptKV(f"token {token_start} is not at the start of a block of {self._unit}")
        whole = chunk.tokens // self._unit * self._unit
        if whole:
            yield token_start, self._cut(chunk, 0, whole)
        if whole < chunk.tokens:
            self._waiting = (token_start + whole, self._cut(chunk, whole, chunk.tokens))

    def rest(self) -> Iterator[tuple[int, Chunk]]:
        """The last block, where the tokens do not fill it."""
        if self._waiting is not None:
            yield self._waiting
            self._waiting = None

    def _cut(self, chunk: Chunk, start: int, stop: int) -> Chunk:
        if (start, stop) == (0, chunk.tokens):
            return chunk
        if self._form.block_tokens or self._form.packed:
            return self._cut_blocks(chunk, start, stop)
        keys = _each(chunk.keys, self._form.keys, lambda array, at: array[(*at, slice(start, stop))])
        values = _each(chunk.values, self._form.values, lambda array, at: array[(*at, slice(start, stop))])
        return Chunk(keys, values, stop - start, chunk.blocks)

    def _cut_blocks(self, chunk: Chunk, start: int, stop: int) -> Chunk:
        """Of paged storage only the table is cut, so a cut must fall between the source's blocks too."""
        slots = self._form.block_tokens
        if not slots or start % slots:
            raise CorruptKV(f"chunks of {self._form.name} cannot be cut at token {start} of one")
        return Chunk(chunk.keys, chunk.values, stop - start, chunk.blocks[start // slots : -(-stop // slots)])

    def _joined(self, one: Chunk, two: Chunk) -> Chunk:
        if self._form.block_tokens or self._form.packed:
            raise CorruptKV(f"chunks of {self._form.name} cannot be joined inside a block")
        keys, values = (
            [_join(a, b, tensor) for a, b in zip(first, second, strict=True)]
            for first, second, tensor in (
                (one.keys, two.keys, self._form.keys),
                (one.values, two.values, self._form.values),
            )
        )
        return Chunk(keys, values, one.tokens + two.tokens, one.blocks)


def _each(arrays: Sequence[Any], tensor: Tensor, cut: Callable[[Any, tuple[slice, ...]], Any]) -> list[Any]:
    at = (slice(None),) * tensor.axes.index("token")
    return [tuple(cut(part, at) for part in a) if isinstance(a, tuple) else cut(a, at) for a in arrays]


def _join(one: Any, two: Any, tensor: Tensor) -> Any:
    if isinstance(one, tuple):
        return tuple(_join(a, b, tensor) for a, b in zip(one, two, strict=True))
    return np.concatenate([one, two], tensor.axes.index("token"))
