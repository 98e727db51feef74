"""Work that ends when its client leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from diptych.errors import WorkerLost

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection; nobody waits for an answer."""


class ServerStopping(WorkerLost):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Send the request again.")


class InFlight:
    """Every request that is being answered."""

    def __init__(self) -> None:
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits ``work``, cancelling it at once when the client hangs up.

        Raises ClientGone then, ServerStopping when :meth:`stop` cut the work short, else what it raises.
        """
        task = asyncio.create_task(work)
        hang_up = asyncio.create_task(_hang_up(receive))
        self._tasks.add(task)
        try:
            await asyncio.wait((task, hang_up), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._tasks.discard(task)
            hang_up.cancel()
            await _end(task)
        if task.cancelled():
            raise ServerStopping if self.stopping else ClientGone
        return task.result()

    async def stop(self, grace_s: float) -> None:
        """Lets the requests in flight finish for ``grace_s`` seconds, then cuts them short."""
        self.stopping = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancels a task that still runs and waits until its generators are closed."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
