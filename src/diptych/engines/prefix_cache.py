"""Keys and values of prompts read before, so that a second turn computes only its suffix.

A prompt is cut into fixed blocks; each block's name is a hash over its tokens *and* the name of the block
before it, so one name stands for everything from the first token on. A block is found only behind its
predecessors. Bounded in bytes; the block used longest ago goes first.

    name(i) = blake2b(name(i - 1) | tokens of block i)
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from diptych.engines.torch_model import KVBuffers

BLOCK_TOKENS = 64


class PrefixCache:
    """Blocks of KV in the engine's own form. ``limit_bytes`` 0 switches it off."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._blocks: OrderedDict[bytes, KVBuffers] = OrderedDict()

    def match(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` that are held: a multiple of the block."""
        return len(self._held(prompt)) * BLOCK_TOKENS

    def restore(self, prompt: Sequence[int], kv: KVBuffers) -> int:
        """Copies what is held of ``prompt`` to the start of ``kv``; returns how many tokens that is."""
        held = self._held(prompt)
        for index, name in enumerate(held):
            block, tokens = self._blocks[name], slice(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
            kv.keys[:, :, tokens] = block.keys
            kv.values[:, :, tokens] = block.values
        for name in reversed(held):  # the first block last: a chain loses its end before its beginning
            self._blocks.move_to_end(name)
        return len(held) * BLOCK_TOKENS

    def store(self, prompt: Sequence[int], kv: KVBuffers, start: int = 0) -> None:
        """Keeps the whole blocks of ``prompt``, whose KV from token ``start`` (a block's first) on is in ``kv``.

        Where blocks before ``start`` are no longer held there is nothing to keep the rest behind.
        """
        block_bytes = (kv.keys[:, :, :BLOCK_TOKENS].nbytes + kv.values[:, :, :BLOCK_TOKENS].nbytes) or 1
        names = list(_names(prompt))[: self.limit_bytes // block_bytes]  # more would push itself out
        if self.match(prompt) < start:
            return
        for index, name in enumerate(names):
            if name not in self._blocks:
                self._insert(name, kv, slice(index * BLOCK_TOKENS - start, (index + 1) * BLOCK_TOKENS - start))
        for name in reversed(names):
            self._blocks.move_to_end(name)
        while self.used_bytes > self.limit_bytes:
            _, evicted = self._blocks.popitem(last=False)
            self.used_bytes -= evicted.keys.nbytes + evicted.values.nbytes

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self.used_bytes = 0

    def _insert(self, name: bytes, kv: KVBuffers, tokens: slice) -> None:
        block = KVBuffers(kv.keys[:, :, tokens].clone(), kv.values[:, :, tokens].clone())
        self._blocks[name] = block
        self.used_bytes += block.keys.nbytes + block.values.nbytes

    def _held(self, prompt: Sequence[int]) -> list[bytes]:
        held = []
        for name in _names(prompt):
            if name not in self._blocks:
                break
            held.append(name)
        return held


def _names(prompt: Sequence[int]) -> Iterator[bytes]:
    name = b""
    for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS):
        block = array("I", prompt[end - BLOCK_TOKENS : end]).tobytes()
        name = hashlib.blake2b(name + block, digest_size=16).digest()
        yield name
