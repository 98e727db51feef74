"""From a model and a worker's settings to a running engine."""

from __future__ import annotations

from pathlib import Path

from diptych.config import DecodeSettings
from diptych.engines.llamacpp.engine import LlamaCppDecode
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.handoff import forms
from diptych.handoff.contract import Geometry
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle


async def start(bundle: ModelBundle, settings: DecodeSettings, directory: Path) -> LlamaCppDecode:
    """The engine, its server up. ``directory`` is private shared memory. Raises ConfigError."""
    return await LlamaCppDecode.start(_settings(settings, directory), _model(bundle), lambda: _pieces(bundle))


def _settings(settings: DecodeSettings, directory: Path) -> Settings:
    slots = directory / "slots"
    slots.mkdir(mode=0o700, exist_ok=True)
    return Settings(
        slot_dir=str(slots),
        binary=settings.binary,
        address=settings.address,
        slots=settings.slots,
        ctx_per_request=settings.ctx_per_request,
        n_batch=settings.n_batch,
        threads=settings.threads,
        gomp_spincount=settings.spin,
    )


def _model(bundle: ModelBundle) -> Model:
    shape = bundle.geometry
    geometry = Geometry(
        layers=shape.layers, kv_heads=shape.kv_heads, head_dim_k=shape.head_dim_k, head_dim_v=shape.head_dim_v
    )
    form = forms.llama_cpp(geometry, bundle.fingerprint, shape.rope_pairing)
    return Model(path=bundle.gguf, name=bundle.id, form=form, vocabulary=shape.vocab)


def _pieces(bundle: ModelBundle) -> list[bytes]:
    chat = ChatFormat.load(bundle)
    return [chat.token_text(token) for token in range(bundle.geometry.vocab)]
