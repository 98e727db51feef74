"""A prefill engine that gets one thing wrong with its KV, as a bug in a conversion would."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.engines.protocol import Description, KVSink, PrefillEngine
from diptych.handoff.contract import Rope

Layers = Sequence[NDArray[np.generic]]
Wrong = Callable[[Layers, Layers], tuple[Layers, Layers]]
TOKEN = 3  # of each chunk: the one that is dropped or zeroed


class _Sink:
    def __init__(self, sink: KVSink, wrong: Wrong) -> None:
        self._sink, self._wrong = sink, wrong

    def write(self, token_start: int, keys: Layers, values: Layers) -> None:
        self._sink.write(token_start, *self._wrong(keys, values))


class Sabotaged:
    """``engine`` with every chunk's keys and values ([head, token, dim] a layer) changed by ``wrong``."""

    def __init__(
        self, engine: PrefillEngine, wrong: Wrong | None = None, rope: Rope | None = None, chunk_s: float = 0.0
    ) -> None:
        """Each chunk takes ``chunk_s`` seconds longer."""
        self._engine, self._wrong, self._rope, self._chunk_s = engine, wrong, rope, chunk_s
        self.chunks = 0

    def describe(self) -> Description:
        """What the engine says of itself; with ``rope``, a lie about its pairing."""
        about = self._engine.describe()
        if self._rope is None:
            return about
        return msgspec.structs.replace(about, form=msgspec.structs.replace(about.form, rope=self._rope))

    def prefill(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        steps = self._engine.prefill(prompt, _Sink(sink, self._wrong) if self._wrong else sink)
        while True:
            time.sleep(self._chunk_s)
            try:
                done = next(steps)
            except StopIteration as end:
                return int(end.value)
            self.chunks += 1
            yield done

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        return self._engine.cached_tokens(prompt)

    def close(self) -> None:
        self._engine.close()


def swapped(keys: Layers, values: Layers) -> tuple[Layers, Layers]:
    """K for V and V for K."""
    return values, keys


def next_layers(keys: Layers, values: Layers) -> tuple[Layers, Layers]:
    """Every layer has the KV of the one after it."""
    return [*keys[1:], keys[0]], [*values[1:], values[0]]


def one_layer_shifted(keys: Layers, values: Layers) -> tuple[Layers, Layers]:
    """One layer's keys stand one token late, all other layers' are right."""
    shifted = np.roll(keys[1], 1, axis=1)
    return [keys[0], shifted, *keys[2:]], values


def dropped(keys: Layers, values: Layers) -> tuple[Layers, Layers]:
    """One token is missing, the ones behind it have moved up, and the last stands twice."""
    return [_without(layer) for layer in keys], [_without(layer) for layer in values]


def zeroed(keys: Layers, values: Layers) -> tuple[Layers, Layers]:
    """One token's keys and values are zero."""
    return [_zero(layer) for layer in keys], [_zero(layer) for layer in values]


def _without(layer: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([layer[:, :TOKEN], layer[:, TOKEN + 1 :], layer[:, -1:]], axis=1)


def _zero(layer: NDArray[np.generic]) -> NDArray[np.generic]:
    changed = layer.copy()
    changed[:, TOKEN] = 0
    return changed
