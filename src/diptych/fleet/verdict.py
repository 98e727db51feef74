"""Whether a (prefill, decode) pair may serve: thresholds over its canaries. Pure.

The thresholds come from a trial over 48 prompts of SmolLM2-135M (PyTorch bf16 -> llama.cpp Q4_1): KL mean 0.0063,
p90 0.011, top-1 0.88 with every flip at a gap of at most 0.24 nats; worst K / V row 0.145 / 0.255, against 0.98 /
1.67 for rows shifted by one. Distributions hardly see one wrong row; rows hardly see a wrong count. Both are asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

KL_MEAN = 0.015
KL_P90 = 0.03
TOP1_AGREEMENT = 0.80
FLIP_GAP = 0.5
K_ROW_ERROR = 0.4
V_ROW_ERROR = 0.6


class CanaryOutcome(msgspec.Struct, frozen=True):
    """One canary as measured: see :class:`diptych.fleet.messages.CanaryResult`."""

    prompt_tokens: int
    kl: float
    top1_equal: bool
    gap: float
    k_row_error: float
    v_row_error: float


class Verdict(msgspec.Struct, frozen=True):
    """A qualification's result. ``failures`` is empty exactly when ``passed``."""

    canaries: int
    kl_mean: float
    kl_p90: float
    top1_agreement: float
    max_flip_gap: float
    k_row_error_max: float
    v_row_error_max: float
    passed: bool
    failures: tuple[str, ...]


def judge(outcomes: Sequence[CanaryOutcome], *, least_agreement: float = TOP1_AGREEMENT) -> Verdict:
    """The verdict over all canaries. ``least_agreement`` is lower for a handful, where one near-tie weighs much."""
    kl = np.array([outcome.kl for outcome in outcomes])
    kl_mean, kl_p90 = float(kl.mean()), float(np.percentile(kl, 90))
    agreement = sum(outcome.top1_equal for outcome in outcomes) / len(outcomes)
    flip_gap = max((outcome.gap for outcome in outcomes if not outcome.top1_equal), default=0.0)
    k_row = max(outcome.k_row_error for outcome in outcomes)
    v_row = max(outcome.v_row_error for outcome in outcomes)
    checks = (
        ("kl_mean", kl_mean, kl_mean <= KL_MEAN, f"<= {KL_MEAN}"),
        ("kl_p90", kl_p90, kl_p90 <= KL_P90, f"<= {KL_P90}"),
        ("top1_agreement", agreement, agreement >= least_agreement, f">= {least_agreement}"),
        ("max_flip_gap", flip_gap, flip_gap < FLIP_GAP, f"< {FLIP_GAP} nats"),
        ("k_row_error_max", k_row, k_row <= K_ROW_ERROR, f"<= {K_ROW_ERROR}"),
        ("v_row_error_max", v_row, v_row <= V_ROW_ERROR, f"<= {V_ROW_ERROR}"),
    )
    failures = tuple(f"{name} is {value:.4g}, must be {rule}" for name, value, good, rule in checks if not good)
    return Verdict(len(outcomes), kl_mean, kl_p90, agreement, flip_gap, k_row, v_row, not failures, failures)
