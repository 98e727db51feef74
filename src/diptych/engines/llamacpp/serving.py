"""From a worker's settings to a running engine."""

from __future__ import annotations

from pathlib import Path

from diptych.config import DecodeSettings
from diptych.engines.llamacpp.engine import LlamaCppDecode
from diptych.engines.llamacpp.settings import Settings
from diptych.models.resolve import ModelBundle


async def start(bundle: ModelBundle, settings: DecodeSettings, directory: Path) -> LlamaCppDecode:
    """The engine, its server up. ``directory`` is private shared memory. Raises ConfigError."""
    slots = directory / "slots"
    slots.mkdir(mode=0o700, exist_ok=True)
    chosen = Settings(
        slot_dir=str(slots),
        binary=settings.binary,
        address=settings.address,
        slots=settings.slots,
        ctx_per_request=settings.ctx_per_request,
        n_batch=settings.n_batch,
        threads=settings.threads,
        gomp_spincount=settings.spin,
        token_timeout_s=settings.token_timeout_s,
    )
    return await LlamaCppDecode.start(chosen, bundle)
