"""Text that is still coming, judged before it leaves. Pure, no I/O.

    [ left ] a [ may be let go ][ held: a match that begins here may end in what is still to come ]

A match that begins before the held part has all the text that could belong to it, so it is found as it would be in the
whole text; the last character that left stays for what looks back by one.
"""

from __future__ import annotations

from diptych.gateway.guardrails.policy import Finding, Guardrail, blocks, masked


class Window:
    """One stretch of text. ``findings`` are those of what was let go, and the one that blocked."""

    def __init__(self, guardrail: Guardrail) -> None:
        self._guardrail = guardrail
        self._text = ""
        self._begin = 0
        self.findings: list[Finding] = []
        self.blocked = False

    def push(self, text: str) -> str:
        """What may leave now, masked. Nothing once the text is blocked."""
        self._text += text
        return self._release(len(self._text) - self._guardrail.hold)

    def finish(self) -> str:
        """What was held: the text is complete."""
        return self._release(len(self._text))

    def _release(self, end: int) -> str:
        if self.blocked or end <= self._begin:
            return ""
        found = [one for one in self._guardrail.find(self._text, self._begin) if one.start < end]
        self.findings += found
        if blocks(found):
            self.blocked = True
            return ""
        end = max([end, *(one.end for one in found)])
        said = masked(self._text, found, self._begin, end)
        keep = max(0, end - 1)
        self._text, self._begin = self._text[keep:], end - keep
        return said
