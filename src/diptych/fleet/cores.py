"""Which cores a decode worker's compute threads are bound to, where the engines have to share cores. Pure.

A decode step is hundreds of short parallel regions, each of which ends when its slowest thread does. Left alone, the
scheduler now and then puts both threads of a decode engine on one core and the prefill engine's on the other:
every region then takes two turns, and a step of 32 ms takes 136. Bound, each thread has a core that it shares only
with prefill, which `nice` makes the one that waits. Prefill's threads stay free to move: bound, they are several times
slower as soon as anything else runs on their core.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from diptych.config import DecodeSettings, FleetSettings, PrefillSettings


def bound(settings: FleetSettings, cores: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """A core for each compute thread, by decode worker; empty where ``cores`` suffice for all threads at once."""
    if sum(_threads(worker) for worker in settings.workers) <= len(cores):
        return {}
    turn = cycle(cores)
    sharing = [worker for worker in settings.decode if 0 < _threads(worker) <= len(cores)]
    return {worker.id: tuple(islice(turn, worker.threads)) for worker in sharing}


def _threads(worker: PrefillSettings | DecodeSettings) -> int:
    """Threads that compute on this machine's cores."""
    elsewhere = worker.device != "cpu" or (isinstance(worker, DecodeSettings) and worker.address is not None)
    return 0 if elsewhere or worker.engine == "emulated" else worker.threads
