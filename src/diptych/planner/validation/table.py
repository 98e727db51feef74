"""What a validation says: how far the predictions are from records that the fit did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a validation. Errors are |predicted / measured - 1|; ``passed`` is None where nothing is judged.

    ``excluded`` counts the rows left out by the rule that left them out.
    """

    table: str
    metric: str
    fit_rows: int
    judged_rows: int
    excluded: dict[str, int] = {}
    median: float
    p90: float
    max: float
    target: float | None = None
    passed: bool | None = msgspec.field(default=None, name="pass")


def score(
    table: str,
    metric: str,
    pairs: Sequence[tuple[float, float]],
    *,
    fit_rows: int,
    target: float | None = None,
    excluded: Mapping[str, int] | None = None,
    by: str = "median",
) -> Score:
    """The errors of (predicted, measured) ``pairs``; ``by`` is which of them has to be within ``target``."""
    errors = np.array([abs(predicted / measured - 1.0) for predicted, measured in pairs])
    found = {
        "median": float(np.median(errors)),
        "p90": float(np.quantile(errors, 0.9)),
        "max": float(errors.max()),
    }
    return Score(
        table=table,
        metric=metric,
        fit_rows=fit_rows,
        judged_rows=len(errors),
        excluded=dict(excluded or {}),
        target=target,
        passed=None if target is None else found[by] <= target,
        **found,
    )
