"""Mooncake's transfer engine (``diptych[mooncake]``): tcp by default; ``protocol="efa"`` is the EFA path of
hosts without CUDA, Trainium's among them (not run: it needs an EFA device).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from diptych.errors import ConfigError, WorkerLost
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes
from diptych.handoff.transports.remote import RemoteDoor, RemoteTransport, Run

os.environ.setdefault("GLOG_minloglevel", "3")  # read when the library is loaded: it logs every handshake

from mooncake.engine import TransferEngine


class Transport(RemoteTransport):
    def __init__(self, key: bytes, host: str = "127.0.0.1", *, protocol: str = "tcp") -> None:
        super().__init__(key, MooncakeMover(host, protocol))


class Door(RemoteDoor):
    def __init__(self, landing: Landing, key: bytes, host: str = "127.0.0.1", *, protocol: str = "tcp") -> None:
        super().__init__("mooncake", landing, key, host, MooncakeMover(host, protocol))


class MooncakeMover:
    """One engine, met by host and port without a metadata server.

    Transfers start at once and run beside each other; only the waiting for their ends, which blocks, has a thread.
    """

    def __init__(self, host: str, protocol: str) -> None:
        self._engine: Any = TransferEngine()
        if self._engine.initialize(host, "P2PHANDSHAKE", protocol, ""):
            raise ConfigError(f"Mooncake cannot use protocol {protocol} on this machine")
        self._peer = f"{host}:{self._engine.get_rpc_port()}"
        self._registered: list[int] = []
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="mooncake")

    def expose(self, memory: Bytes) -> str:
        self.register(memory)
        return self._peer

    def register(self, memory: Bytes) -> None:
        if self._engine.register_memory(memory.ctypes.data, memory.nbytes):
            raise ConfigError(f"Mooncake cannot register {memory.nbytes} bytes")
        self._registered.append(memory.ctypes.data)

    def meet(self, peer: str) -> str:
        return peer

    def write(self, peer: str, runs: Sequence[Run]) -> Future[int]:
        here, there, sizes = (list(column) for column in zip(*runs, strict=True))
        batch = self._engine.batch_transfer_async_write(peer, here, there, sizes)
        if not batch:
            raise WorkerLost(f"Mooncake cannot write to {peer}")
        return self._waiter.submit(self._engine.get_batch_transfer_status, [batch])

    def done(self, handle: Future[int]) -> bool:
        if not handle.done():
            return False
        if handle.result():
            raise WorkerLost(f"a Mooncake transfer ended with code {handle.result()}")
        return True

    def close(self) -> None:
        self._waiter.shutdown()
        for address in self._registered:
            self._engine.unregister_memory(address)
        self._registered.clear()
        self._engine = None
