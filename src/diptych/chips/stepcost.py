"""The one cost model: seconds of a step as a handful of terms. Each family of chips only says how big they are.

    prefill  fixed + per token + per expert read + per query-key pair        (+ a knee)
    decode   fixed + per sequence + per expert read + per KV token
    mixed    a decode step into which a chunk of somebody's prompt is mixed: decode + interference x prefill

With the batch given, a decode step is a straight line in the context (two lines when layers have a window, which
meet at ``batch * window``). ``decode_line`` hands that line out, so that a simulator can jump over many steps.
"""

from __future__ import annotations

import bisect
from typing import Protocol, runtime_checkable

import msgspec

from diptych.chips.geometry import Geometry
from diptych.chips.quantity import Kind


@runtime_checkable
class DecodeLine(Protocol):
    """The optional power of a cost model whose decode step is linear in the context."""

    def decode_line(self, batch: int, context_tokens: int) -> tuple[float, float, float]:
        """(base_s, slope_s, until): a step of ``batch`` takes base_s + slope_s * context, for contexts from
        ``context_tokens`` up to ``until``."""


class StepCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and capacity of one worker for one model. All times in seconds.

    ``pair_s`` is the time of one query-key pair per layer; a layer with a window has at most ``window`` of them
    per query. ``experts_s`` reads every expert of every layer once; ``expert_share`` is the part of them that one
    token reads. ``knee``: (tokens, extra seconds, extra seconds a token) that a prefill above ``tokens`` costs.
    ``kind`` is the weakest kind among the inputs.
    """

    prefill_fixed_s: float
    prefill_token_s: float
    decode_fixed_s: float
    decode_token_s: float
    kv_capacity_tokens: int
    cost_per_hour: float | None = None
    prefill_pair_s: float = 0.0
    prefill_experts_s: float = 0.0
    decode_sequence_s: float = 0.0
    decode_experts_s: float = 0.0
    expert_share: float = 0.0
    layers: int = 1
    windowed_layers: int = 0
    window: int = 0
    knee: tuple[float, float, float] | None = None
    interference: float = 1.0
    kind: Kind = "measured"
    notes: tuple[str, ...] = ()

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        if new_tokens <= 0:
            return 0.0
        full = new_tokens * (cached_tokens + 0.5 * new_tokens)
        pairs = (self.layers - self.windowed_layers) * full
        if self.windowed_layers:
            inside = min(new_tokens, max(0, self.window - cached_tokens))
            near = inside * (cached_tokens + 0.5 * inside) + (new_tokens - inside) * self.window
            pairs += self.windowed_layers * near
        seconds = self.prefill_fixed_s + self.prefill_token_s * new_tokens + self.prefill_pair_s * pairs
        if self.prefill_experts_s:
            seconds += self.prefill_experts_s * (1.0 - (1.0 - self.expert_share) ** new_tokens)
        if self.knee is not None and new_tokens > self.knee[0]:
            seconds += self.knee[1] + self.knee[2] * (new_tokens - self.knee[0])
        return seconds

    def decode_s(self, batch: int, context_tokens: int) -> float:
        if batch <= 0:
            return 0.0
        seconds = self.decode_fixed_s + self.decode_sequence_s * batch
        if self.decode_experts_s:
            seconds += self.decode_experts_s * (1.0 - (1.0 - self.expert_share) ** batch)
        if not self.windowed_layers:
            return seconds + self.decode_token_s * context_tokens
        far = (self.layers - self.windowed_layers) * context_tokens
        near = self.windowed_layers * min(context_tokens, batch * self.window)
        return seconds + self.decode_token_s * (far + near) / self.layers

    def decode_line(self, batch: int, context_tokens: int) -> tuple[float, float, float]:
        knee = batch * self.window
        if not self.windowed_layers:
            base = self.decode_s(batch, 0)
            return base, self.decode_token_s, float("inf")
        if context_tokens < knee:
            return self.decode_s(batch, 0), self.decode_token_s, float(knee)
        slope = self.decode_token_s * (self.layers - self.windowed_layers) / self.layers
        return self.decode_s(batch, knee) - slope * knee, slope, float("inf")


class CurveCost(msgspec.Struct, frozen=True, kw_only=True):
    """A measured worker whose prefill is a curve through points (tokens, seconds), straight between them.

    Beyond the last point it goes on with the slope of the last two; below the first it is flat.
    """

    points: tuple[tuple[float, float], ...]
    decode_fixed_s: float
    decode_sequence_s: float
    decode_token_s: float
    kv_capacity_tokens: int
    cost_per_hour: float | None = None
    interference: float = 1.0
    kind: Kind = "measured"

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:  # noqa: ARG002  the protocol's
        """The cached tokens are not computed; that later tokens attend to them is not in the curve."""
        if new_tokens <= self.points[0][0]:
            return self.points[0][1] if new_tokens > 0 else 0.0
        if len(self.points) == 1:
            return self.points[0][1] * new_tokens / self.points[0][0]
        at = min(bisect.bisect_left(self.points, (new_tokens,)), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[at - 1], self.points[at]
        return y0 + (y1 - y0) * (new_tokens - x0) / (x1 - x0)

    def decode_s(self, batch: int, context_tokens: int) -> float:
        if batch <= 0:
            return 0.0
        return self.decode_fixed_s + self.decode_sequence_s * batch + self.decode_token_s * context_tokens

    def decode_line(self, batch: int, context_tokens: int) -> tuple[float, float, float]:  # noqa: ARG002  the protocol's
        return self.decode_s(batch, 0), self.decode_token_s, float("inf")


def shaped(cost: StepCost, geometry: Geometry) -> StepCost:
    """The cost with what only the model's shape decides filled in."""
    return msgspec.structs.replace(
        cost,
        layers=geometry.layers,
        windowed_layers=geometry.windowed_layers,
        window=geometry.window,
        expert_share=geometry.experts_per_token / geometry.experts if geometry.experts else 0.0,
    )
