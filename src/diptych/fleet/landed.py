"""KV on the decode worker's side of a handoff, as its engine takes it over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.handoff.landing import Landing
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket

Blocks = Sequence[NDArray[np.uint8]]


class Landed:
    """Sealed KV in the landing area; admission copies it out, proves the copy and frees the region."""

    def __init__(self, landing: Landing, ticket: Ticket, seal: Seal, freed: Callable[[], object]) -> None:
        self._landing, self._ticket, self._seal, self._freed = landing, ticket, seal, freed

    @property
    def tokens(self) -> int:
        return self._ticket.tokens

    def admit(self, blocks: Blocks) -> None:
        """See :meth:`diptych.handoff.landing.Landing.admit`; callable from any thread."""
        try:
            self._landing.admit(self._ticket.handoff_id, self._seal, blocks)
        finally:
            self._freed()


class AdmittedKV(NamedTuple):
    """KV that was admitted before, to be put into an engine once more."""

    tokens: int
    blocks: Blocks

    def admit(self, blocks: Blocks) -> None:
        for target, source in zip(blocks, self.blocks, strict=True):
            target[...] = source.reshape(target.shape)
