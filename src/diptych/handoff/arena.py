"""One fixed-size piece of shared memory that handoffs land in, with a control row for each handoff.

    file    | control rows, 64 bytes each | regions of any length, 4 KiB aligned, first fit ... |
    row     | u64 epoch | u64 tokens written | u64 writer | u64 given up | ...

The owner (a decode worker) creates the file, reserves and touches every page of it (so nothing can run out
of memory or fault later) and holds a lock on it for as long as it lives; a file whose lock is free belongs
to a dead process and is removed by the next owner that starts in the same directory. The directory must be
private (0700).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError, StaleWrite

ROWS = 1024
_ROW_WORDS = 8
HEADER_BYTES = ROWS * _ROW_WORDS * 8
PAGE = 4096


class Row:
    """The control words that a handoff's two sides share. The receiver writes the epoch, the writer the rest.

    The epoch is in force from offer to end; 0 is never one. A word is written in one piece.
    """

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def offer(self, epoch: int) -> None:
        self._words[:4] = 0
        self._words[0] = epoch

    def strike(self) -> None:
        """From now on the epoch's writer may not write."""
        self._words[0] = 0

    def holds(self, epoch: int) -> bool:
        return bool(self._words[0] == epoch)

    def claim(self, writer: int) -> bool:
        """Makes ``writer`` the only one; False where another one is already."""
        if self._words[2] == 0:
            self._words[2] = writer
        return bool(self._words[2] == writer)

    def wrote(self, tokens: int) -> None:
        self._words[1] += np.uint64(tokens)

    def give_up(self, epoch: int) -> None:
        """The writer says that nothing more will come; it names its epoch, so a late word means nothing."""
        self._words[3] = epoch

    @property
    def tokens(self) -> int:
        return int(self._words[1])

    def given_up(self, epoch: int) -> bool:
        return bool(self._words[3] == epoch)


class Arena:
    """A mapping of the file: control rows, and ``data``, the bytes for regions."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        whole = np.frombuffer(self._map, np.uint8)
        self._rows: NDArray[np.uint64] = whole[:HEADER_BYTES].view(np.uint64).reshape(ROWS, _ROW_WORDS)
        self.data: NDArray[np.uint8] = whole[HEADER_BYTES:]

    def row(self, slot: int) -> Row:
        return Row(self._rows[slot])

    @property
    def size(self) -> int:
        """Bytes for regions."""
        return self.data.nbytes

    @classmethod
    def create(cls, directory: Path, size: int) -> Arena:
        """A new arena of at least ``size`` bytes for regions, warm. Raises ConfigError where it cannot be
        made.
        """
        _require_private(directory)
        _sweep(directory)
        total = HEADER_BYTES + -(-size // PAGE) * PAGE
        path = directory / f"landing-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, total)
            return cls(path, descriptor, total)
        except OSError as error:
            os.close(descriptor)
            path.unlink()
            raise ConfigError(f"no {total >> 20} MiB of shared memory in {directory}: {error.strerror}") from error

    @classmethod
    def attach(cls, path: Path) -> Arena:
        """Another process's arena. Raises StaleWrite where it is gone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StaleWrite(f"the landing area {path} is gone: {error.strerror}") from error
        return cls(path, descriptor, os.fstat(descriptor).st_size)

    def close(self, *, remove: bool = False) -> None:
        """Lets go of the memory; the owner also removes the file. Arrays still held elsewhere keep their
        pages.
        """
        if self._descriptor < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        del self._rows, self.data
        with contextlib.suppress(BufferError):  # a view is in use; the mapping goes with the last one
            self._map.close()


def _require_private(directory: Path) -> None:
    found = directory.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{directory} must belong to this user alone (mode 0700)")


def _sweep(directory: Path) -> None:
    """Removes the arenas of owners that died without removing them."""
    for path in directory.glob("landing-*"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
