"""Tokens that a key may use, by Bedrock's rule: reserved when a request starts, settled when it ends. Pure.

    start   reserve prompt + max_tokens            refused when a budget has less
    end     settle  prompt + tokens made           the rest is given back; all of it where no token was made

A key's reserved tier has budgets of its own, one for input and one for output, and takes nothing from the others. A
request that they have no room for overflows: it is served, and counted, as the default tier.

A budget refills steadily, so that a minute's tokens come back within a minute. Budgets are for each key and model.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from diptych.gateway.auth.keys import Key
from diptych.gateway.refusals import Throttled

PER_MINUTE = "Too many tokens, please wait before trying again."
PER_DAY = "Too many tokens per day, please wait before trying again."


class Budget:
    """Up to ``tokens`` at once, refilled over ``period_s`` seconds."""

    def __init__(self, tokens: int, period_s: float, refusal: str) -> None:
        self.tokens = tokens
        self.refusal = refusal
        self._per_s = tokens / period_s
        self._level = float(tokens)
        self._at_s: float | None = None

    def level(self, now_s: float) -> float:
        """Tokens that are left."""
        if self._at_s is not None:
            self._level = min(self.tokens, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return self._level

    def add(self, now_s: float, tokens: float) -> None:
        """Gives tokens back, or takes them where negative."""
        self._level = min(self.tokens, self.level(now_s) + tokens)


class Reservation(msgspec.Struct):
    """Tokens set aside in some budgets. Settled once; again has no effect."""

    budgets: tuple[Budget, ...] = ()
    tokens: int = 0

    def settle(self, now_s: float, used: int) -> None:
        budgets, self.budgets = self.budgets, ()
        for budget in budgets:
            budget.add(now_s, self.tokens - used)


class Quotas:
    """The budgets of all keys. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budgets: dict[tuple[str, str], tuple[Budget, ...]] = {}
        self._reserved: dict[tuple[str, str], tuple[Budget, Budget]] = {}

    def reserve(self, key: Key | None, model: str, tokens: int) -> Reservation:
        """Sets ``tokens`` aside, in all budgets or in none. Raises Throttled."""
        budgets = self._of(key, model)
        now_s = self._clock()
        for budget in budgets:
            if budget.level(now_s) < tokens:
                raise Throttled(budget.refusal)
        for budget in budgets:
            budget.add(now_s, -tokens)
        return Reservation(budgets, tokens)

    def reserve_tier(self, key: Key | None, model: str, prompt: int, output: int) -> tuple[Reservation, ...] | None:
        """Sets aside (input, output) tokens of the reserved tier, or returns None where the request overflows."""
        budgets = self._reserved_of(key, model)
        now_s = self._clock()
        wanted = (prompt, output)
        if budgets is None or any(one.level(now_s) < most for one, most in zip(budgets, wanted, strict=True)):
            return None
        for budget, most in zip(budgets, wanted, strict=True):
            budget.add(now_s, -most)
        return tuple(Reservation((budget,), most) for budget, most in zip(budgets, wanted, strict=True))

    def _reserved_of(self, key: Key | None, model: str) -> tuple[Budget, Budget] | None:
        if key is None or key.reserved_input_tokens_per_minute is None or key.reserved_output_tokens_per_minute is None:
            return None
        known = self._reserved.get((key.name, model))
        if known is None:
            limits = (key.reserved_input_tokens_per_minute, key.reserved_output_tokens_per_minute)
            known = Budget(limits[0], 60.0, PER_MINUTE), Budget(limits[1], 60.0, PER_MINUTE)
            self._reserved[key.name, model] = known
        return known

    def settle(self, reservation: Reservation, used: int) -> None:
        reservation.settle(self._clock(), used)

    def _of(self, key: Key | None, model: str) -> tuple[Budget, ...]:
        if key is None:
            return ()
        known = self._budgets.get((key.name, model))
        if known is None:
            limits = ((key.tokens_per_minute, 60.0, PER_MINUTE), (key.tokens_per_day, 86400.0, PER_DAY))
            known = tuple(Budget(tokens, period, text) for tokens, period, text in limits if tokens is not None)
            self._budgets[key.name, model] = known
        return known
