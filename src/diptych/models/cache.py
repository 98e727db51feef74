"""The user's cache folder: weights, tokenizers and checksums, each file complete or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock
from platformdirs import user_cache_path

from diptych.errors import ConfigError


def cache_folder(room: str) -> Path:
    """The folder of ``room`` below the user's cache, made if need be (``XDG_CACHE_HOME`` moves it)."""
    folder = user_cache_path("diptych") / room
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} cannot be made: {error.strerror}") from error
    return folder


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds ``path`` against other processes that want to make the same file."""
    with FileLock(f"{path}.lock"):
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path beside ``path`` that takes its place, in one step, when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


class _Checked(msgspec.Struct, frozen=True):
    size: int
    mtime_ns: int
    sha256: str


def fingerprint(path: Path | str) -> str:
    """SHA-256 of a file, in hex; remembered for as long as its size and time of change stay the same."""
    path = Path(path).resolve()
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    memory = cache_folder("checksums") / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    known = _recall(memory)
    if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known.sha256
    digest = sha256_of(path)
    with replacing(memory) as scratch:
        scratch.write_bytes(msgspec.json.encode(_Checked(status.st_size, status.st_mtime_ns, digest)))
    return digest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex, computed now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recall(memory: Path) -> _Checked | None:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=_Checked)
    except (OSError, msgspec.DecodeError):
        return None
