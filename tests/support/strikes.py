"""What a fault matrix does to a process: kill it, stop it for a while, cut its connection, have it restarted."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PIDFD_GETFD = 438  # the same number on every architecture


def stop_for(pid: int, seconds: float) -> threading.Thread:
    """Stops a process; the thread lets it go on."""
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=go_on)
    thread.start()
    return thread


def cut(pid: int, socket_path: Path) -> int:
    """Shuts down every connection that the process ``pid`` has accepted at ``socket_path``; returns how many."""
    handle = os.pidfd_open(pid)
    count = 0
    try:
        for number in _accepted(pid, socket_path):
            copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, handle, number, 0)
            if copy < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            with socket.socket(fileno=copy) as mine, suppress(OSError):
                mine.shutdown(socket.SHUT_RDWR)
                count += 1
    finally:
        os.close(handle)
    return count


def _accepted(pid: int, socket_path: Path) -> Iterator[int]:
    """The descriptors of connected sockets that bear the name of ``socket_path``."""
    connected = re.compile(rf"^\w+: \w+ \w+ (\w+) \w+ 03 +(\d+) {re.escape(str(socket_path))}$", re.MULTILINE)
    inodes = {inode for _, inode in connected.findall(Path("/proc/net/unix").read_text())}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            if found and found[1] in inodes:
                yield int(entry.name)
