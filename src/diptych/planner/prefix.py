"""Which prefill workers hold which prefixes: one index over all of them, least recently used blocks leave first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """``capacity_blocks`` a worker. A worker holds the prefix of a prompt as far as it holds all blocks before."""

    def __init__(self, capacity_blocks: Sequence[int]) -> None:
        self._capacity = list(capacity_blocks)
        self._held: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacity_blocks]
        self._holders: dict[int, int] = {}

    def depths(self, blocks: Sequence[int]) -> dict[int, int]:
        """Worker -> blocks of the prefix that it holds, for the workers that hold any."""
        found: dict[int, int] = {}
        holders, held_by = self._holders, -1
        depth = 0
        for block in blocks:
            still = held_by & holders.get(block, 0)
            if depth and still != held_by:
                _note(found, held_by & ~still, depth)
            held_by = still
            if not held_by:
                return found
            depth += 1
        if depth:
            _note(found, held_by, depth)
        return found

    def add(self, worker: int, blocks: Sequence[int]) -> None:
        """The worker has read the prompt; its oldest blocks go when there is no room."""
        capacity, held = self._capacity[worker], self._held[worker]
        if not capacity:
            return
        bit, holders, renew = 1 << worker, self._holders, held.move_to_end
        for block in blocks:
            if block in held:
                renew(block)
            else:
                held[block] = None
                holders[block] = holders.get(block, 0) | bit
        for _ in range(len(held) - capacity):
            oldest, _ = held.popitem(last=False)
            if left := holders[oldest] & ~bit:
                holders[oldest] = left
            else:
                del holders[oldest]

    def drop(self, worker: int) -> None:
        """The worker is gone, and its cache with it."""
        for block in self._held[worker]:
            self._holders[block] &= ~(1 << worker)
        self._held[worker].clear()


def _note(found: dict[int, int], workers: int, depth: int) -> None:
    while workers:
        low = workers & -workers
        found[low.bit_length() - 1] = depth
        workers ^= low
