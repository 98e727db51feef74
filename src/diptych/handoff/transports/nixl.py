"""NIXL (``diptych[nixl]``): UCX by default; with ``backend="LIBFABRIC"`` the path to EFA (not run: it needs
CUDA's libraries and an EFA device).
"""

from __future__ import annotations

import base64
import logging
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from nixl_cu12._api import nixl_agent, nixl_agent_config

from diptych.errors import WorkerLost
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes
from diptych.handoff.transports.remote import RemoteDoor, RemoteTransport, Run


class Transport(RemoteTransport):
    def __init__(self, key: bytes, backend: str = "UCX") -> None:
        super().__init__(key, NixlMover(backend, passive=False))


class Door(RemoteDoor):
    def __init__(self, landing: Landing, key: bytes, host: str = "127.0.0.1", *, backend: str = "UCX") -> None:
        super().__init__("nixl", landing, key, host, NixlMover(backend, passive=True))


class NixlMover:
    """One agent. Its metadata travel inside signed tickets, so only the fleet's own are ever loaded.

    An agent is not safe to call from several threads (it crashes), and every handoff has a thread: one at a time.
    """

    def __init__(self, backend: str, *, passive: bool) -> None:
        """``passive``: others write here at any time, so a thread of NIXL's must look for them; a writer looks
        when it asks whether it is done, and leaves the cores to the engine.
        """
        logging.getLogger("nixl").setLevel(logging.WARNING)
        self._agent: Any = nixl_agent(
            secrets.token_hex(8), nixl_agent_config(enable_prog_thread=passive, backends=[backend])
        )
        self._registered: list[Any] = []
        self._lock = threading.Lock()

    def expose(self, memory: Bytes) -> str:
        self.register(memory)
        return base64.b64encode(self._agent.get_agent_metadata()).decode()

    def register(self, memory: Bytes) -> None:
        region = [(memory.ctypes.data, memory.nbytes, 0, "")]
        self._registered.append(self._guard(self._agent.register_memory, region, "DRAM"))

    def meet(self, peer: str) -> Any:
        return self._guard(self._agent.add_remote_agent, base64.b64decode(peer))

    def write(self, peer: Any, runs: Sequence[Run]) -> Any:
        here = self._guard(self._agent.get_xfer_descs, [(local, size, 0) for local, _, size in runs], "DRAM")
        there = self._guard(self._agent.get_xfer_descs, [(remote, size, 0) for _, remote, size in runs], "DRAM")
        handle = self._guard(self._agent.initialize_xfer, "WRITE", here, there, peer)
        self._guard(self._agent.transfer, handle)
        return handle

    def done(self, handle: Any) -> bool:
        state = self._guard(self._agent.check_xfer_state, handle)
        if state == "PROC":
            return False
        self._guard(self._agent.release_xfer_handle, handle)
        if state != "DONE":
            raise WorkerLost(f"a NIXL transfer ended as {state}")
        return True

    def close(self) -> None:
        for region in self._registered:
            self._agent.deregister_memory(region)
        self._registered.clear()
        self._agent = None

    def _guard(self, call: Any, *arguments: Any) -> Any:
        try:
            with self._lock:
                return call(*arguments)
        except Exception as error:  # the binding's errors have no common class
            raise WorkerLost(f"NIXL: {error}") from error
