"""Coefficients from records. Errors are relative: 10 % of a millisecond weighs as much as 10 % of a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError

Array = NDArray[np.float64]


class Fitted(msgspec.Struct, frozen=True):
    """seconds = (sum of coefficient x term) x exp(sum of exponent x factor)."""

    coefficients: dict[str, float]
    exponents: dict[str, float]

    def predict(self, terms: Mapping[str, float], factors: Mapping[str, float] | None = None) -> float:
        total = sum(self.coefficients.get(name, 0.0) * value for name, value in terms.items())
        power = sum(self.exponents.get(name, 0.0) * value for name, value in (factors or {}).items())
        return float(total * np.exp(power))


def fit_terms(
    terms: Sequence[Mapping[str, float]],
    factors: Sequence[Mapping[str, float]],
    seconds: Sequence[float],
    prior: Mapping[str, float],
    at_least_one: frozenset[str] | set[str] = frozenset(),
    pull: float = 0.1,
    outlier: float = 0.15,
) -> Fitted:
    """Positive coefficients by robust least squares on the logarithm of the time.

    ``prior`` names the terms and their expected coefficients, to which ``pull`` draws what the records do not
    identify; ``at_least_one`` are times at peak, which nothing beats; residuals above ``outlier`` count linearly.
    """
    from scipy.optimize import least_squares  # noqa: PLC0415  0.3 s to import, and only a fit needs it

    names, powers = list(prior), sorted({name for row in factors for name in row})
    x = np.array([[row[name] for name in names] for row in terms])
    z = np.array([[row[name] for name in powers] for row in factors]).reshape(len(x), len(powers))
    target = np.log(np.array(seconds))
    start = np.concatenate([np.log([prior[name] for name in names]), np.zeros(len(powers))])
    low = np.concatenate([[0.0 if name in at_least_one else -30.0 for name in names], np.full(len(powers), -3.0)])

    def residuals(theta: Array) -> Array:
        predicted = np.log(x @ np.exp(theta[: len(names)])) + z @ theta[len(names) :]
        return np.concatenate([predicted - target, pull * (theta - start)])

    high = np.full(len(start), 30.0)
    start = np.maximum(start, low + 1e-6)
    found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=outlier, max_nfev=200).x
    coefficients = np.exp(found[: len(names)])
    return Fitted(
        dict(zip(names, map(float, coefficients), strict=True)),
        dict(zip(powers, map(float, found[len(names) :]), strict=True)),
    )


def fit_positive(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients of at least 0 that minimise the relative error of ``rows @ coefficients``.

    Raises ConfigError when there are fewer rows than coefficients.
    """
    from scipy.optimize import nnls  # noqa: PLC0415  as above

    x, y = np.array(rows, dtype=float), np.array(values, dtype=float)
    if len(x) < x.shape[1]:
        raise ConfigError(f"{len(x)} records cannot identify {x.shape[1]} coefficients; give more of them")
    scale = np.abs(x / y[:, None]).max(axis=0)
    scale[scale == 0.0] = 1.0
    found, _ = nnls(x / y[:, None] / scale, np.ones(len(y)))
    return [float(c) for c in found / scale]


def curve(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The medians of the measured (tokens, seconds) at each number of tokens, in order, never falling."""
    by_tokens: dict[float, list[float]] = {}
    for tokens, seconds in points:
        by_tokens.setdefault(tokens, []).append(seconds)
    medians = [(tokens, float(np.median(values))) for tokens, values in sorted(by_tokens.items())]
    rising = np.maximum.accumulate([seconds for _, seconds in medians])
    return tuple((tokens, float(seconds)) for (tokens, _), seconds in zip(medians, rising, strict=True))
