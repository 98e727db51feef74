"""Handoffs of random sizes through a transport that goes wrong: no wrong token, and the counters add up."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from diptych.errors import HandoffError, WorkerLost
from diptych.handoff import codecs
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.transports import Sender, fault, load, open_door

from .conftest import buffers, chunks, kv
from .test_transports import until

EVERYTHING = fault.Faults(
    duplicate=0.03, reorder=0.03, delay=0.01, delay_s=0.0005, drop=0.01, truncate=0.01, flip=0.01, cut=0.003
)


@pytest.mark.parametrize("inner", ["shm", "tcp"])
@pytest.mark.parametrize(("handoffs", "seed"), [(400, 1), pytest.param(10_000, 3, marks=pytest.mark.soak)])
def test_every_altered_handoff_is_caught(
    landing: Landing, source: KVForm, target: KVForm, inner: str, handoffs: int, seed: int
) -> None:
    door = open_door(inner, landing, b"key")
    broken = fault.Transport(load(inner, b"key").transport, EVERYTHING, seed)
    sender, rng = Sender(broken), np.random.default_rng(seed)
    recomputed: Counter[str] = Counter()
    for turn in range(handoffs):
        tokens = int(rng.integers(1, 120))
        ticket = landing.offer(str(turn), target, tokens, 30.0, door.via)
        private = buffers(target, tokens)
        keys, values = kv(source, tokens, turn)
        writer = sender.open_writer(ticket, source)
        try:
            for part in chunks(tokens, int(rng.integers(1, 60))):
                writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
            landing.admit(ticket.handoff_id, writer.seal(), private)
        except WorkerLost:
            writer.abort()
            until(lambda ticket=ticket: landing.expire() == [ticket.handoff_id])
            recomputed["given_up"] += 1
        except HandoffError as error:
            assert ticket.handoff_id in broken.altered, "refused though nothing was altered"
            recomputed[error.reason] += 1
        else:
            landing.release(ticket.handoff_id)
            for layer in range(3):  # also where a fault did alter bytes, to what they were anyway
                want = codecs.decode(values[layer], source.values).transpose(1, 0, 2).astype(np.float16)
                got = private[3 + layer].reshape(-1).view(np.float16).reshape(tokens, 2, 8)
                np.testing.assert_array_equal(got, want)
    counts = landing.counts
    assert counts["offered"] == handoffs == counts["admitted"] + sum(recomputed.values())
    assert {reason: counts[f"failed.{reason}"] for reason in recomputed} == recomputed
    assert set(broken.done) == {"duplicate", "reorder", "delay", "drop", "truncate", "flip", "cut"}
    assert counts["admitted"] > handoffs // 3
    assert landing.used_bytes == 0
    sender.close()
    door.close()
