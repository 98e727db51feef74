"""Cost models that start from a few measurements and follow what the workers really take.

Both curves are linear in their coefficients, so one estimator serves: least squares with a prior, in which older
observations fade. Where nothing new is seen, the prior (the start-up measurement) stands.

    prefill_s = a + b new + c new^2 + d new cached          decode_s = a + b batch + c context
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

FADE = 0.98
PRIOR_WEIGHT = 4.0


class Fading:
    """Least squares whose data fade by ``FADE`` per observation towards a prior worth ``PRIOR_WEIGHT`` of them.

    ``scale`` is the size that each feature typically has; it makes the prior's weight mean the same for all.
    """

    def __init__(self, prior: Sequence[float], scale: Sequence[float]) -> None:
        self._scale = np.asarray(scale, float)
        self._prior = np.asarray(prior, float) * self._scale
        self._gram = np.zeros((len(prior), len(prior)))
        self._moment = np.zeros(len(prior))
        self._solve()

    def predict(self, features: Sequence[float]) -> float:
        """Never negative."""
        return max(0.0, float(self._coefficients @ (np.asarray(features, float) / self._scale)))

    def observe(self, features: Sequence[float], value: float) -> None:
        x = np.asarray(features, float) / self._scale
        self._gram = FADE * self._gram + np.outer(x, x)
        self._moment = FADE * self._moment + x * value
        self._solve()

    def _solve(self) -> None:
        weight = PRIOR_WEIGHT * np.eye(len(self._prior))
        self._coefficients: Vector = np.linalg.solve(self._gram + weight, self._moment + weight @ self._prior)


class LearnedCost:
    """A worker's :class:`~diptych.chips.cost.CostModel`, refined by :meth:`saw_prefill` and :meth:`saw_step`."""

    def __init__(
        self,
        prefill: Sequence[float],
        decode: Sequence[float],
        capacity: int,
        cost_per_hour: float | None = None,
    ) -> None:
        """``prefill`` is (a, b, c, d), ``decode`` (a, b, c), in seconds."""
        self._prefill = Fading(prefill, (1.0, 512.0, 512.0**2, 512.0**2))
        self._decode = Fading(decode, (1.0, 4.0, 2048.0))
        self._capacity = capacity
        self._cost_per_hour = cost_per_hour

    @property
    def kv_capacity_tokens(self) -> int:
        return self._capacity

    @property
    def cost_per_hour(self) -> float | None:
        return self._cost_per_hour

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        return self._prefill.predict(_reading(new_tokens, cached_tokens))

    def decode_s(self, batch: int, context_tokens: int) -> float:
        return self._decode.predict((1.0, batch, context_tokens))

    def saw_prefill(self, new_tokens: int, cached_tokens: int, seconds: float) -> None:
        self._prefill.observe(_reading(new_tokens, cached_tokens), seconds)

    def saw_step(self, batch: int, context_tokens: int, seconds: float) -> None:
        self._decode.observe((1.0, batch, context_tokens), seconds)


def _reading(new: int, cached: int) -> tuple[float, float, float, float]:
    return (1.0, float(new), float(new) * new, float(new) * cached)


def fit_prefill(points: Sequence[tuple[int, float]]) -> tuple[float, float, float, float]:
    """(a, b, c, d) from (new tokens, seconds), none negative; ``d`` = 2 c, since attention over a cached token
    costs what it costs over a new one, and a new token sees half of the new ones on average."""
    tokens = np.array([point[0] for point in points], float)
    seconds = np.array([point[1] for point in points], float)
    columns = np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1)
    keep = [0, 1, 2][: len(points)]
    while True:
        found = np.linalg.lstsq(columns[:, keep], seconds, rcond=None)[0]
        negative = [column for column, value in zip(keep, found, strict=True) if value < 0 and column != 1]
        if not negative:
            break
        keep.remove(negative[-1])
    a, b, c = (float(found[keep.index(column)]) if column in keep else 0.0 for column in range(3))
    if c * tokens.max() > b / 2:  # noise: extrapolated, it would price long prompts out of a worker for good
        return fit_prefill(((int(tokens.min()), float(seconds.min())), (int(tokens.max()), float(seconds.max()))))
    return a, b, c, 2 * c
