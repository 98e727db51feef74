"""The private folder in shared memory that a running fleet owns: sockets, landing areas, slot images.

    /dev/shm/diptych-<uid>-<pid of the owner>/      0700
        <worker>.sock
        <worker>/                                   removed when that worker ends
It is removed when the owner ends. When the owner was killed, its workers end too and each takes its own part with it,
the last one the folder; what is left of a fleet that was killed whole is swept up by the next one to start.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path


def _base() -> Path:
    shared = Path("/dev/shm")  # noqa: S108  # shared memory is the point; the folder in it is private
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


class RunDir:
    """Created by the owner; ``close`` removes everything in it."""

    def __init__(self) -> None:
        sweep()
        self.path = _base() / f"diptych-{os.getuid()}-{os.getpid()}"
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)

    def address(self, worker: str) -> str:
        """Where ``worker`` listens."""
        return f"ipc://{self.path}/{worker}.sock"

    def worker_dir(self, worker: str) -> Path:
        """The folder of ``worker``, fresh and empty."""
        self.clear(worker)
        path = self.path / worker
        path.mkdir(mode=0o700)
        return path

    def clear(self, worker: str) -> None:
        """Removes what ``worker`` left."""
        shutil.rmtree(self.path / worker, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def leave(directory: Path, owner: int) -> None:
    """A worker's last act: where the owner is gone, nobody else removes ``directory`` and the socket beside it."""
    if not _gone(owner):
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.with_suffix(".sock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another worker is still there
        directory.parent.rmdir()


def sweep() -> None:
    """Removes the folders of owners that are no longer there."""
    for path in _base().glob(f"diptych-{os.getuid()}-*"):
        owner = re.fullmatch(r"diptych-\d+-(\d+)", path.name)
        if owner and _gone(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)


def _gone(pid: int) -> bool:
    """Whether a process has ended. One that was killed keeps its pid, and its children, until its last thread has
    ended and somebody has waited for it; its first thread is a zombie by then."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"
