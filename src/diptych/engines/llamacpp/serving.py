"""From a worker's settings to a running engine."""

from __future__ import annotations

from pathlib import Path

from diptych.config import DecodeSettings, PrefillSettings
from diptych.engines.llamacpp.engine import LlamaCppDecode
from diptych.engines.llamacpp.settings import Settings
from diptych.models.resolve import ModelBundle


async def start(bundle: ModelBundle, settings: DecodeSettings, directory: Path) -> LlamaCppDecode:
    """The engine, its server up. ``directory`` is private shared memory. Raises ConfigError."""
    chosen = Settings(
        slot_dir=_slot_dir(directory),
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


async def start_for_prefill(
    bundle: ModelBundle, settings: PrefillSettings, context_tokens: int, directory: Path
) -> LlamaCppDecode:
    """A server that only reads prompts: a slot for each one that is on its way. Raises ConfigError."""
    chosen = Settings(
        slot_dir=_slot_dir(directory),
        slots=settings.active_prompts,
        ctx_per_request=context_tokens,
        n_batch=max(settings.chunk_tokens, settings.active_prompts),
        threads=settings.threads,
        gomp_spincount=settings.spin,
        images=0,
    )
    return await LlamaCppDecode.start(chosen, bundle)


def _slot_dir(directory: Path) -> str:
    slots = directory / "slots"
    slots.mkdir(mode=0o700, exist_ok=True)
    return str(slots)
