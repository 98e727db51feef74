"""The real ``diptych serve`` as a process, and what a test may ask of it from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

_ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 240.0  # the very first start qualifies the default model
Found = TypeVar("Found")


def environment(**more: str) -> dict[str, str]:
    """This one's, with the sources under test first on the path."""
    return {**os.environ, "PYTHONPATH": str(_ROOT / "src"), "COLUMNS": "100", **more}


def command(*arguments: str) -> list[str]:
    """``diptych`` with these arguments, as the installed script runs it; ``DIPTYCH`` names another one."""
    return [os.environ.get("DIPTYCH", str(Path(sys.executable).with_name("diptych"))), *arguments]


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``diptych`` with these arguments, to its end; ``more`` goes into its environment."""
    return subprocess.run(
        command(*arguments), env=environment(**more), capture_output=True, text=True, timeout=60, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(look: Callable[[], Found], within_s: float, what: str) -> Found:
    """The first truthy answer of ``look``, which is asked again and again."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return found


class Fleet:
    """A running fleet: its ``url``, its processes, and its folder in shared memory."""

    def __init__(
        self,
        folder: Path,
        settings: str,
        program: Sequence[str] = (),
        *,
        gateway: str = "",
        key: str | None = None,
        **more: str,
    ) -> None:
        """``settings`` is a fleet.toml without its ``[gateway]``, ``gateway`` more lines of that; ``key`` is ours.

        ``program`` is what to run instead of ``diptych``, with ``more`` in its environment. Returns when the fleet
        says that it is ready.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._log = folder / f"fleet-{self.port}.log"
        file = folder / f"fleet-{self.port}.toml"
        file.write_text(f"{settings}\n[gateway]\nport = {self.port}\n{gateway}\n")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(program or command()), "serve", "--config", str(file)],
                env=environment(**more),
                stdout=log,
                stderr=log,
            )
        self.rundir = Path(f"/dev/shm/diptych-{os.getuid()}-{self.process.pid}")
        try:
            until(lambda: self._ready() or self.process.poll() is not None, READY_S, "the fleet is ready")
            assert self._ready(), self.log
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _ready(self) -> bool:
        return re.search(rf"Diptych is ready at https?://127.0.0.1:{self.port}", self.log) is not None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str, **params: Any) -> Any:
        return httpx.get(f"{self.url}{path}", params=params, headers=self._headers, timeout=10).json()

    def health(self) -> dict[str, Any]:
        """The answer of ``/health``; status "unreachable" while there is no gateway."""
        try:
            return dict(self.get("/health"))
        except httpx.TransportError:
            return {"status": "unreachable", "workers": {}}

    def record(self, request_id: str) -> dict[str, Any]:
        return dict(self.get(f"/diptych/requests/{request_id}"))

    def records(self, limit: int = 1000) -> list[dict[str, Any]]:
        return list(self.get("/diptych/requests", limit=limit)["requests"])

    def pid(self, name: str) -> int:
        """The process of a worker, of "gateway" or of "llama-server"; 0 while there is none."""
        if name == "gateway":
            return next((pid for pid in children(self.process.pid) if "diptych.gateway.main" in cmdline(pid)), 0)
        if name == "llama-server":
            decode = self.pid("decode-0")
            return next(iter(children(decode)), 0) if decode else 0
        return int(self.health()["workers"].get(name, {}).get("pid") or 0)

    def descendants(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            found += children(pid)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 15.0) -> int:
        """Ends the fleet and gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        finally:
            self.process.kill()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def running(pid: int) -> bool:
    """Whether the process does anything yet; one that is over and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def proven(record: Mapping[str, Any]) -> bool:
    """Whether the request was disaggregated, after checking that its record says no more than happened."""
    assert record["status"] == "finished", record
    if record["placement"] == "disaggregated" and record["recomputed"] is None:
        assert record["kv_tokens"] == record["prompt_tokens"] - 1, record
        assert record["kv_bytes"] > 0
        assert record["prefill"]
        return True
    assert record["kv_tokens"] == record["kv_bytes"] == 0, record
    return False
