"""After an answer: its KV goes back from the decode worker to the prefill worker, so that the next turn starts from it.

    service -> P: TakeBack(tokens)      what of them do you lack?         P -> Wanted(start, stop, ticket)
    service -> D: GiveBack(ticket)      once D runs nothing else          D -> GivenBack(seal)
    service -> P: Keep(seal)            proof, then the prefix cache      P -> Kept(tokens)
It is the handoff the other way round: the same contract, tickets, digests and transports. Nobody waits for it, and
whatever goes wrong with it costs the next turn nothing but the saving.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from diptych.errors import DeadlineExceeded, DiptychError, HandoffError
from diptych.fleet import messages as m
from diptych.fleet.handover import met, transport_between
from diptych.fleet.peer import Peer

log = logging.getLogger("diptych.giveback")

STEP_S = 30.0
"""For each of the three steps; the second waits for the decode worker to be idle."""
AT_ONCE = 4
"""Further answers are not returned while so many are: a busy fleet has no idle moment for them anyway."""


class GiveBack:
    """Runs in the background. ``counts`` has "kept", "needless" (nothing was lacking), and why others failed."""

    def __init__(self, kept: Callable[[str, str, Sequence[int]], object]) -> None:
        """``kept`` is told the prefill worker, the request and the tokens that are there now."""
        self.counts: Counter[str] = Counter()
        self._kept = kept
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, prefill: Peer, decode: Peer, request_id: str, tokens: Sequence[int]) -> None:
        """``tokens`` are prompt and answer but for the last token, whose KV nobody has."""
        if len(self._tasks) >= AT_ONCE:
            self.counts["busy"] += 1
            return
        task = asyncio.create_task(self._run(prefill, decode, request_id, tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Waits for what is under way."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, prefill: Peer, decode: Peer, request_id: str, tokens: Sequence[int]) -> None:
        try:
            held = await give_back(prefill, decode, f"return-{request_id}", tokens)
        except DiptychError as error:
            log.info("the KV of %s is not returned: %s", request_id, error)
            self.counts[_reason(error)] += 1
            return
        self.counts["kept" if held else "needless"] += 1
        if held:
            self._kept(prefill.worker, request_id, tokens[:held])


async def give_back(prefill: Peer, decode: Peer, name: str, tokens: Sequence[int]) -> int:
    """How many of ``tokens`` the prefill worker holds now; 0 where it lacked too few. Raises DiptychError."""
    transport = transport_between(met(decode), met(prefill))
    taking, giving = prefill.open(name), decode.open(name)
    finished = False
    try:
        prefill.send(m.TakeBack(name, tuple(tokens), transport))
        wanted = await taking.expect(m.Wanted, STEP_S)
        if not wanted.ticket:
            finished = True
            return 0
        decode.send(m.GiveBack(name, tuple(tokens[: wanted.stop]), wanted.start, wanted.ticket))
        given = await giving.expect(m.GivenBack, STEP_S)
        prefill.send(m.Keep(name, given.seal))
        kept = await taking.expect(m.Kept, STEP_S)
        finished = True
        return kept.tokens
    finally:
        prefill.forget(name, cancel=not finished)
        decode.forget(name, cancel=not finished)


def _reason(error: DiptychError) -> str:
    if isinstance(error, HandoffError):
        return error.reason
    return "deadline" if isinstance(error, DeadlineExceeded) else type(error).__name__
