"""What it costs to keep leases."""

from __future__ import annotations

import time

from diptych.handoff.leases import Lease, Leases


def leases_core_share(seconds: int = 600, leases: int = 1000, owners: int = 8) -> float:
    """Processor time, per second, of keeping leases: a heartbeat a second from each owner and one look at
    all.
    """
    held: Leases[None] = Leases(limit_bytes=1 << 50, silence_s=30.0)
    for number in range(leases):
        held.grant(Lease(str(number), f"decode-{number % owners}", 1 << 20, 1e9, None), 0.0)
    started = time.process_time()
    for second in range(seconds):
        for owner in range(owners):
            held.heartbeat(f"decode-{owner}", float(second))
        held.expire(float(second))
    return (time.process_time() - started) / seconds
