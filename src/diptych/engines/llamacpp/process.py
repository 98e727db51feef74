"""Starts llama-server in a child process of its own, learns its address, and tells when it ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from diptych.engines.llamacpp import host
from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.errors import ConfigError, EngineError, WorkerLost

LOG_TAIL_LINES = 8
HEALTH_POLL_S = 0.05
PRIORITIES = {"low": -1, "normal": 0, "medium": 1, "high": 2, "realtime": 3}


class ServerProcess:
    """A running child. Its log is the file ``server.log`` in the slot directory."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, api_key: str) -> None:
        self._process, self._log = process, log
        # Popen's own kill() polls first and can take the exit status away from asyncio's watcher
        self._handle = os.pidfd_open(process.pid)
        self.address, self.api_key = "", api_key

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, settings: Settings, model: Model) -> ServerProcess:
        """A server that answers. Raises ConfigError, with the end of its log, when it does not come up."""
        log = Path(settings.slot_dir) / "server.log"
        # other users of this machine, and web pages, can reach a loopback port too
        api_key = secrets.token_urlsafe(24)
        command = [] if settings.binary is None else _command(settings, model, _free_port())
        report_from, report_to = os.pipe()
        try:
            process = await _spawn(settings, api_key, log, report_to)
        finally:
            os.close(report_to)
        server = cls(process, log, api_key)
        orders = _orders(settings, model, api_key, command, report_to)
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                server.address = await server._comes_up(orders, report_from, command)
        except BaseException as error:
            tail = server.tail()
            await server.stop()
            if isinstance(error, TimeoutError):
                waited = f"{settings.start_timeout_s:g} s"
                raise ConfigError(f"llama-server is not ready after {waited}{tail}") from error
            raise
        return server

    async def ended(self) -> WorkerLost:
        """Waits for the child's end; the answer says how it ended."""
        code = await self._process.wait()
        return WorkerLost(f"llama-server (process {self.pid}) ended with code {code}{self.tail()}")

    def kill(self) -> None:
        """Ends the child at once; :meth:`ended` then returns."""
        if self._handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def stop(self) -> None:
        """Kills the child, which has nothing to save, and waits until it is gone."""
        self.kill()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        await self._process.wait()
        self._log.unlink(missing_ok=True)

    def tail(self) -> str:
        """The end of the log, for an error's text."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "".join(f"\n  {line}" for line in lines[-LOG_TAIL_LINES:])

    async def _comes_up(self, orders: bytes, report_from: int, command: list[str]) -> str:
        assert self._process.stdin is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(report_from, "rb", 0)
        )
        try:
            self._process.stdin.write(orders)
            self._process.stdin.write_eof()
            if command:
                return await self._answers(command)
            address = (await reader.readline()).decode().strip()
        finally:
            transport.close()
        if not address:
            raise await self._did_not_start("llama-server")
        return address

    async def _answers(self, command: list[str]) -> str:
        address = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
        client = Client(address, None)
        while self._process.returncode is None:
            try:
                await client.call("GET", "/health")
            except (WorkerLost, EngineError):
                await asyncio.sleep(HEALTH_POLL_S)
            else:
                return address
        raise await self._did_not_start(command[0])

    async def _did_not_start(self, what: str) -> ConfigError:
        code = await self._process.wait()
        return ConfigError(f"{what} does not start: it ended with code {code}{self.tail()}")


async def _spawn(settings: Settings, api_key: str, log: Path, report_to: int) -> asyncio.subprocess.Process:
    environment = dict(os.environ) | {"LLAMA_API_KEY": api_key}
    if settings.gomp_spincount is not None:
        environment["GOMP_SPINCOUNT"] = str(settings.gomp_spincount)
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", host.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(report_to,),
            process_group=0,  # a terminal's Ctrl-C is for the parent, which ends this child in order
        )


def _orders(settings: Settings, model: Model, api_key: str, command: list[str], report_to: int) -> bytes:
    server: dict[str, Any] = {
        "model": model.path,
        "api_key": api_key,
        "slots": settings.slots,
        "n_ctx": settings.n_ctx,
        "n_batch": settings.n_batch,
        "threads": settings.threads,
        "poll": settings.poll,
        "priority": settings.priority,
        "http_threads": http_threads(settings),
        "slot_dir": f"{settings.slot_dir}/",
    }
    orders = {
        "parent": os.getpid(),
        "cpus": settings.cpus,
        "command": command,
        "server": server,
        "report_to": report_to,
    }
    return msgspec.json.encode(orders)


def http_threads(settings: Settings) -> int:
    """One for each stream, which occupies it to its end, and some for calls on slots."""
    return settings.slots + 4


def _command(settings: Settings, model: Model, port: int) -> list[str]:
    """The command line of a ``llama-server`` binary. The key goes through the environment: others can see
    arguments.
    """
    assert settings.binary is not None
    batch, threads = str(settings.n_batch), str(settings.threads)
    return [
        *(settings.binary, "--model", model.path, "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(settings.slots), "--ctx-size", str(settings.n_ctx), "--no-kv-unified"),
        *("--batch-size", batch, "--ubatch-size", batch, "--flash-attn", "on", "--cache-ram", "0"),
        *("--threads", threads, "--threads-batch", threads, "--threads-http", str(http_threads(settings))),
        *("--poll", str(settings.poll), "--prio", str(PRIORITIES[settings.priority])),
        *("--slot-save-path", settings.slot_dir, "--no-webui", "--no-warmup"),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
