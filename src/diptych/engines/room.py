"""How many tokens an answer may have. The same for every decode engine."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import ContextExceeded, InvalidRequest
from diptych.types import Sampling


def output_limit(prompt: Sequence[int], sampling: Sampling, context_tokens: int) -> int:
    """As many tokens as are asked for and fit into ``context_tokens``. Raises InvalidRequest or ContextExceeded."""
    room = context_tokens - len(prompt)
    if not prompt or sampling.max_tokens < 1:
        raise InvalidRequest("a prompt of at least one token and max_tokens of at least 1 are needed")
    if room < 1:
        raise ContextExceeded(f"the prompt has {len(prompt)} tokens; the context has room for {context_tokens - 1}")
    return min(sampling.max_tokens, room)
