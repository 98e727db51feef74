"""Private slot files that a handoff fills and llama-server restores.

Their size is fixed at the longest possible slot file and their pages stay warm: the first touch of a fresh
page costs more than the copy into it. llama-server reads only as far as the header says, so what an earlier,
longer request left behind the end does no harm. Nobody but this process can write into an image: it is
checked, then restored.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from diptych.engines.llamacpp.slotfile import Bytes, Layout, SlotForm
from diptych.errors import ConfigError, CorruptKV


class SlotImage:
    """One slot file in memory."""

    def __init__(self, directory: Path, form: SlotForm, max_tokens: int) -> None:
        """``max_tokens`` fit. Raises ConfigError where the memory is not to be had."""
        self.path = directory / f"image-{secrets.token_hex(8)}"
        self._form = form
        self._bytes: Bytes = np.frombuffer(_new_file(self.path, form.longest(max_tokens)), np.uint8)
        self._layout: Layout | None = None

    @property
    def name(self) -> str:
        """The file's name, as the server's save and restore calls want it."""
        return self.path.name

    @property
    def file_bytes(self) -> int:
        """Bytes of the image that count; what follows them is left over."""
        return 0 if self._layout is None else self._layout.length

    def prepare(self, tokens: Sequence[int]) -> list[Bytes]:
        """Writes every structural byte for ``tokens``; the answer is where the rows go.

        One writable [tokens, row bytes] array per layer: K of every layer in order, then V.
        """
        self._layout = self._form.layout(tokens)
        self._layout.write(self._bytes)
        return self._layout.blocks(self._bytes)

    def verify(self, tokens: Sequence[int]) -> None:
        """Compares length and every structural byte with what ``tokens`` require. Raises CorruptKV.

        A file that is a few bytes short makes llama-server abort, and a wrong header may be accepted
        silently.
        """
        size = self.path.stat().st_size
        if size != len(self._bytes):
            raise CorruptKV(f"the slot image has {size} bytes, not {len(self._bytes)}")
        wrong_at = self._form.layout(tokens).wrong_at(self._bytes)
        if wrong_at is not None:
            raise CorruptKV(f"the slot image's header differs at byte {wrong_at}")

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


class ImagePool:
    """A few images for all slots: one is in use only from a handoff's admission to its restore."""

    def __init__(self, directory: Path, form: SlotForm, max_tokens: int, count: int) -> None:
        self._all: list[SlotImage] = []
        self._free: asyncio.LifoQueue[SlotImage] = asyncio.LifoQueue()
        try:
            for _ in range(count):
                self._all.append(SlotImage(directory, form, max_tokens))
                self._free.put_nowait(self._all[-1])
        except BaseException:
            self.close()
            raise

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[SlotImage]:
        image = await self._free.get()
        try:
            yield image
        finally:
            self._free.put_nowait(image)

    def close(self) -> None:
        for image in self._all:
            image.close()


def _new_file(path: Path, size: int) -> mmap.mmap:
    """A private file of ``size`` bytes, mapped, every page already there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError as error:
        path.unlink()
        raise ConfigError(f"{path.parent} has no room for a slot image of {size} bytes: {error.strerror}") from error
    finally:
        os.close(descriptor)
