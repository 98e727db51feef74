"""Which prefixes an engine has read before: the states of whole blocks, the one used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict

from diptych.engines.emulated.kv import U64

BLOCK_TOKENS = 64


class Held:
    """Room for ``tokens`` tokens. A state names its whole prefix, so a block is known by its last token's."""

    def __init__(self, tokens: int) -> None:
        self._limit = tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def match(self, states: U64) -> int:
        """Tokens at the start that are held: a multiple of the block."""
        depth = 0
        for state in states[BLOCK_TOKENS - 1 :: BLOCK_TOKENS].tolist():
            if state not in self._blocks:
                break
            depth += 1
        return depth * BLOCK_TOKENS

    def add(self, states: U64) -> None:
        """These have been read; first blocks last, so that a chain loses its end before its beginning."""
        for state in reversed(states[BLOCK_TOKENS - 1 :: BLOCK_TOKENS].tolist()[: self._limit]):
            self._blocks[state] = None
            self._blocks.move_to_end(state)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()
