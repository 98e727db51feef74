"""The service's end of the connection to one worker: calls, streams, heartbeat, loss."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import msgspec
import zmq

from diptych.config import Deadlines
from diptych.errors import DeadlineExceeded, WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.sockets import Watch, Wire
from diptych.types import TokenChunk

Reply = TypeVar("Reply", bound=m.Message)


class Mailbox:
    """What a worker sent under one request id, in order. A loss ends it with an error."""

    def __init__(self) -> None:
        self._items: deque[m.FromWorker] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None

    def put(self, item: m.FromWorker | Exception) -> None:
        if isinstance(item, Exception):
            self._lost = item
        else:
            self._items.append(item)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        """Forgets what came so far, but not that the worker was lost."""
        self._items.clear()

    def check(self) -> None:
        """Raises WorkerLost where the worker was lost since the mailbox was opened."""
        if self._lost is not None:
            raise self._lost

    async def get(self) -> m.FromWorker:
        """The next message. Raises what a Failed message carries, or WorkerLost."""
        while not self._items:
            self.check()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, m.Failed):
            raise item.error()
        return item

    def more_tokens(self, chunk: TokenChunk) -> TokenChunk:
        """``chunk`` together with the chunks behind it that have come already and are tokens alone."""
        tokens = list(chunk.tokens)
        while chunk.finish is None and self._items and isinstance(item := self._items[0], m.Tokens):
            if item.chunk.logprobs or item.chunk.prepared is not None:
                break
            self._items.popleft()
            chunk = item.chunk
            tokens += chunk.tokens
        return msgspec.structs.replace(chunk, tokens=tuple(tokens)) if len(tokens) > len(chunk.tokens) else chunk

    async def expect(self, kind: type[Reply], within_s: float) -> Reply:
        """The next message, which must be of this kind. Raises DeadlineExceeded after ``within_s`` seconds."""
        try:
            async with asyncio.timeout(within_s):
                item = await self.get()
        except TimeoutError:
            raise DeadlineExceeded(f"no {kind.__name__} within {within_s:g} s") from None
        if not isinstance(item, kind):
            raise WorkerLost(f"expected {kind.__name__}, got {type(item).__name__}")
        return item


class Peer:
    """One worker as the service sees it. ``welcome`` is None while the worker is not there."""

    def __init__(self, worker: str, address: str, deadlines: Deadlines, on_change: Callable[[], None]) -> None:
        self.worker = worker
        self.welcome: m.Welcome | None = None
        self._deadlines = deadlines
        self._on_change = on_change
        self._boxes: dict[str, Mailbox] = {}
        self._loop = asyncio.get_running_loop()
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for a worker that is not there
        self._watch = Watch(socket, self._lost)
        self._wire = Wire(socket, self._on_frames)
        socket.connect(address)
        self._heard = 0.0
        self._beat = asyncio.create_task(self._heartbeat())

    @property
    def alive(self) -> bool:
        return self.welcome is not None

    def open(self, request_id: str) -> Mailbox:
        """Registers a mailbox for a request; :meth:`forget` must follow."""
        if not self.alive:
            raise WorkerLost(f"{self.worker} is not running")
        return self._boxes.setdefault(request_id, Mailbox())

    def send(self, message: m.ToWorker) -> None:
        """Raises WorkerLost when the worker cannot be reached."""
        if not self._wire.send(m.encode(message)):
            raise WorkerLost(f"{self.worker} cannot be reached")

    def forget(self, request_id: str, *, cancel: bool = False) -> None:
        """Drops the mailbox; with ``cancel`` the worker is told to stop. Never raises."""
        if self._boxes.pop(request_id, None) is not None and cancel:
            self._wire.send(m.encode(m.Cancel(request_id)))

    def cancel(self, request_id: str) -> None:
        """Tells the worker to free whatever belongs to this id. Never raises."""
        if self.alive:
            self._wire.send(m.encode(m.Cancel(request_id)))

    async def ready(self, within_s: float) -> m.Welcome:
        """Waits until the worker has answered. Raises DeadlineExceeded."""
        deadline = self._loop.time() + within_s
        while self.welcome is None:
            if self._loop.time() > deadline:
                raise DeadlineExceeded(f"{self.worker} did not answer within {within_s:g} s")
            await asyncio.sleep(0.02)
        return self.welcome

    def _on_frames(self, frames: list[bytes]) -> None:
        self._heard = self._loop.time()
        self._on_message(m.decode_from_worker(frames[-1]))

    def _on_message(self, message: m.FromWorker) -> None:
        if isinstance(message, m.Together):
            for one in message.messages:
                self._on_message(one)
        elif isinstance(message, m.Welcome):
            self._met(message)
        elif isinstance(message, m.Dropped):
            self._lost()
            self._wire.send(m.encode(m.Hello()))
        elif not isinstance(message, m.Pong):
            box = self._boxes.get(message.id)
            if box is not None:
                box.put(message)

    def _met(self, welcome: m.Welcome) -> None:
        if self.welcome is not None and self.welcome.instance != welcome.instance:
            self._lost()
        self.welcome = welcome
        self._on_change()

    def _lost(self) -> None:
        if self.welcome is None:
            return
        self.welcome = None
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.put(WorkerLost(f"{self.worker} was lost"))
        self._on_change()

    async def _heartbeat(self) -> None:
        while True:
            self._wire.send(m.encode(m.Ping() if self.alive else m.Hello()))
            await asyncio.sleep(self._deadlines.heartbeat_s if self.alive else 0.1)
            if self.alive and self._loop.time() - self._heard > self._deadlines.lost_after_s:
                self._lost()

    async def close(self) -> None:
        self._beat.cancel()
        self._lost()
        self._watch.close()
        self._wire.close()
