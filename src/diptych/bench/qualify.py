"""``diptych qualify``: every pair of a fleet over the full set of canaries, run anew and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from diptych.config import FleetSettings
from diptych.fleet import canary_prompts, local
from diptych.fleet.peer import Peer
from diptych.fleet.qualification import Cache
from diptych.gateway.main import served_model
from diptych.models.cache import cache_folder
from diptych.serving import find_model
from diptych.startup import qualify
from diptych.terminal import StartProgress


async def run(settings: FleetSettings) -> dict[str, Any]:
    """The verdict of each pair, the first pair's fields at the top; ``passed`` only when every pair passed."""
    bundle = find_model(settings)
    chat = served_model(bundle, settings).chat
    cache = Cache(Path(cache_folder("qualified")))
    progress = StartProgress()
    verdicts = {}
    async with local.running(settings, bundle) as workers:
        peers = {
            name: Peer(name, address, settings.deadlines, lambda: None) for name, address in workers.addresses.items()
        }
        try:
            for prefill, decode in [(p.id, d.id) for p in settings.prefill for d in settings.decode]:
                reads = await peers[prefill].ready(settings.deadlines.start_s)
                emits = await peers[decode].ready(settings.deadlines.start_s)
                context = min(reads.description.context_tokens, emits.description.context_tokens)
                prompts = canary_prompts.full_set(chat, context)
                progress.phase(f"qualifying {prefill} -> {decode}", len(prompts))
                verdict = await qualify(peers[prefill], peers[decode], prompts, settings.deadlines, progress.advance)
                if verdict.canaries:
                    cache.put(reads, emits, verdict)
                verdicts[f"{prefill} -> {decode}"] = verdict
        finally:
            progress.close()
            for peer in peers.values():
                await peer.close()
    first = next(iter(verdicts.values()))
    every = {name: msgspec.to_builtins(verdict) for name, verdict in verdicts.items()}
    return {**msgspec.to_builtins(first), "passed": all(v.passed for v in verdicts.values()), "pairs": every}
