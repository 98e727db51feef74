"""The HTTP server: granian inside this process, so that the service lives on the same event loop.

    granian (Rust threads: accept, TLS, h1, h2)  <->  event loop (app, service)

The listening socket is ours: granian's own is shared between processes, so it would not notice a port in use. With
a certificate there are two granians behind it, one for TLS and one for plain text (:mod:`diptych.gateway.one_port`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from granian._granian import SocketHolder
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server as GranianServer

from diptych.errors import ConfigError
from diptych.gateway.app import GatewayApp
from diptych.gateway.one_port import OnePort
from diptych.gateway.tls import Certificates

_BACKLOG = 1024
_THREAD_POLLS = 100


class Listen(msgspec.Struct, frozen=True):
    """Where the server listens; port 0 picks a free one. Requests get ``grace_s`` to finish when it stops."""

    host: str = "127.0.0.1"
    port: int = 8080
    grace_s: float = 5.0
    tls: Certificates | None = None


class _Granian(GranianServer):
    """Granian on a socket that already listens; it owns and closes it from then on."""

    def __init__(self, app: GatewayApp, bound: socket.socket, tls: Certificates | None = None) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            websockets=False,
            backlog=_BACKLOG,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
            http2_settings=HTTP2Settings(max_headers_size=256 * 1024, max_concurrent_streams=1024),
            log_enabled=False,
            ssl_cert=tls.cert if tls else None,
            ssl_key=tls.key if tls else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._bound = bound

    def _init_shared_socket(self) -> None:
        unix = self._bound.family == socket.AF_UNIX
        self._shd = SocketHolder(self._bound.detach(), unix, _BACKLOG)  # type: ignore[call-arg, assignment]  # stubs lack it


class GatewayServer:
    """A gateway that listens from :meth:`bind` on and answers while :meth:`serve` runs."""

    def __init__(self, app: GatewayApp, listen: Listen, on_stop: Callable[[], None] = lambda: None) -> None:
        """``on_stop`` is called when it stops accepting, before it waits for what it still answers."""
        self._on_stop = on_stop
        self._app = app
        self._listen = listen
        self._stop = asyncio.Event()
        self._socket: socket.socket | None = None

    def bind(self) -> int:
        """Takes the port and returns it. Raises ConfigError when it cannot be had."""
        listen = self._listen
        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind, proto)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited: no token waits for an ACK
            bound.bind(address)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"Cannot listen on {listen.host}:{listen.port}: {error}. Choose another --host or --port."
            ) from None
        self._socket = bound
        return int(bound.getsockname()[1])

    def stop(self) -> None:
        """Stops accepting, lets requests finish for the grace period, then ends :meth:`serve`."""
        self._stop.set()

    async def serve(self, ready: Callable[[int], None] | None = None) -> None:
        """Answers until :meth:`stop`; SIGTERM and SIGINT call it. ``ready`` is told the port."""
        if self._socket is None:
            self.bind()
        assert self._socket is not None
        port = int(self._socket.getsockname()[1])
        others = _native_threads()
        with tempfile.TemporaryDirectory(prefix="diptych-") as folder:
            await self._answer(Path(folder), lambda: ready(port) if ready else None)
        await _until_gone(others)

    async def _answer(self, folder: Path, ready: Callable[[], None]) -> None:
        assert self._socket is not None
        servers, door = self._servers(self._socket, folder)
        self._stop_on_signals()
        serving = [asyncio.create_task(server.serve()) for server in servers]
        if door:
            await door.start()
        ready()
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((*serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if door:
            door.stop_accepting()
        for server in servers:
            server.stop()  # type: ignore[no-untyped-call]  # granian has no annotation there
        self._on_stop()
        await self._app.gateway.in_flight.stop(self._listen.grace_s)
        _, unfinished = await asyncio.wait(serving, timeout=self._listen.grace_s)
        for task in unfinished:
            task.cancel()
        if door:
            door.close()

    def _servers(self, public: socket.socket, folder: Path) -> tuple[list[_Granian], OnePort | None]:
        """Who answers at the public socket: one granian by itself, or two behind a door."""
        if self._listen.tls is None:
            return [_Granian(self._app, public)], None
        tls, plain = folder / "tls", folder / "plain"
        behind = [_Granian(self._app, _unix(tls), self._listen.tls), _Granian(self._app, _unix(plain))]
        return behind, OnePort(public, tls, plain)

    def _stop_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: whoever owns it calls stop()
                loop.add_signal_handler(number, self.stop)


def _unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


def _native_threads() -> set[str]:
    """Ids of this process's threads that Python did not start; none where the system does not list them."""
    tasks = Path("/proc/self/task")
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    return {task.name for task in tasks.iterdir()} - ours if tasks.exists() else set()


async def _until_gone(others: set[str]) -> None:
    """Waits for granian's threads: one that is still there when the interpreter ends aborts the process."""
    for _ in range(_THREAD_POLLS):
        if not _native_threads() - others:
            return
        await asyncio.sleep(0.01)
