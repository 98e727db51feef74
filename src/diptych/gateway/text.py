"""A stream's token ids as text, cut at the first stop string. Pure, no I/O.

    tokens -> decoder -> [ emitted text ][ held: may become a stop string ]

Where a text is cut does not depend on how it was split into tokens: the stop string that is complete first
wins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diptych.gateway.ports import TokenDecoder


class StopMatcher:
    """Finds the stop string that ends first and holds back text that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._any = re.compile("|".join(map(re.escape, sorted(stops, key=len))))
        self._prefixes = frozenset(stop[:end] for stop in stops for end in range(1, len(stop)))
        self._longest = max(map(len, stops)) - 1
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is now certain not to be part of a stop string."""
        text = self._held + text
        if self._any.search(text):
            return self._cut(text)
        for held in range(min(self._longest, len(text)), 0, -1):
            if text[-held:] in self._prefixes:
                self._held = text[-held:]
                return text[:-held]
        self._held = ""
        return text

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str) -> str:
        found = ((text.find(stop), stop) for stop in self._stops)
        _, start, self.matched = min((at + len(stop), at, stop) for at, stop in found if at >= 0)
        self._held = ""
        return text[:start]


class TextAssembler:
    """Decodes one stream. ``stopped_at`` is the stop string that ended it, once there is one.

    ``tokens_read`` counts every token up to the one that completed a stop string.
    """

    def __init__(self, decoder: TokenDecoder, end_tokens: frozenset[int], stops: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._push = decoder.push
        self._end_tokens = end_tokens
        self._matcher = StopMatcher(stops) if stops else None
        self.tokens_read = 0

    @property
    def stopped_at(self) -> str | None:
        return self._matcher.matched if self._matcher else None

    def push(self, tokens: Sequence[int]) -> list[str]:
        """The text that may leave after each token, where there is some."""
        if self._matcher is not None:
            return self._matched(tokens, self._matcher)
        self.tokens_read += len(tokens)
        ends, push = self._end_tokens, self._push
        return [said for token in tokens if token not in ends and (said := push(token))]

    def _matched(self, tokens: Sequence[int], matcher: StopMatcher) -> list[str]:
        texts = []
        for token in tokens:
            self.tokens_read += 1
            text = "" if token in self._end_tokens else self._push(token)
            if text and (text := matcher.push(text)):
                texts.append(text)
            if matcher.matched is not None:
                break
        return texts

    def finish(self) -> str:
        """What remains at the end of the stream."""
        text = self._decoder.flush()
        if not self._matcher:
            return text
        text = self._matcher.push(text)
        return text if self._matcher.matched else text + self._matcher.flush()
