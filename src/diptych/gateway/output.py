"""What a model's text holds besides text: reasoning and tool calls, read as they are written. Pure, no I/O.

    <think>why</think> It is sunny. <tool_call>{"name": "now", "arguments": {"tz": "UTC"}}</tool_call>
    Reasoning("why")   "It is sunny."  CallBegan("now")  CallInput('{"tz": "UTC"}')  CallEnded

The tags are those that open models write (Qwen, Hermes, SmolLM, DeepSeek); a turn that begins with a bare JSON object
of a name and its arguments is a call too (Llama, and what a forced call is constrained to).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from diptych.gateway.calls import CallBegan, CallEnded, CallInput, CallReader


class Reasoning(msgspec.Struct, frozen=True):
    """Text that the model thought, not said."""

    text: str


Part = str | Reasoning | CallBegan | CallInput | CallEnded

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


class OutputReader:
    """One turn. Text that may become a tag, and white space around tags, is held back."""

    def __init__(self, *, reasoning: bool, tools: bool, thinking: bool = False, call_prefix: str = "call_") -> None:
        """``thinking``: the prompt has already opened the reasoning."""
        self._opens = [tag for tag, wanted in ((THINK, reasoning), (CALL, tools)) if wanted]
        self._bare_call = tools
        self._call_prefix = call_prefix
        self._thinking = thinking
        self._call: CallReader | None = None
        self._call_end: str | None = None
        self._held = ""
        self._said = False
        self.called = False

    def push(self, text: str) -> list[Part]:
        """The parts that are certain after ``text``."""
        return self._read(self._held + text, last=False)

    def finish(self) -> list[Part]:
        """What remains at the end of the turn."""
        return self._read(self._held, last=True)

    def _read(self, text: str, *, last: bool) -> list[Part]:
        self._held = ""
        parts: list[Part] = []
        while text:
            before = text
            text = self._step(text, parts, last=last)
            if text == before:
                self._held = text
                break
        if last and self._call is not None:
            self._take(self._call.finish(), parts)
            self._call = None
        return parts

    def _step(self, text: str, parts: list[Part], *, last: bool) -> str:
        """Reads one piece and returns what is left of the text; the same text when more must come first."""
        if self._call is not None:
            return self._in_call(text, parts, last=last)
        if self._thinking:
            return self._in_reasoning(text, parts, last=last)
        return self._in_text(text, parts, last=last)

    def _in_text(self, text: str, parts: list[Part], *, last: bool) -> str:
        if not self._said:
            text = text.lstrip()
            if self._bare_call and text.startswith("{"):
                return self._begin_call(text, None, parts, last=last)
        found = min(((text.find(tag), tag) for tag in self._opens if tag in text), default=None)
        if found is None:
            certain = text if last else text[: len(text) - _held_back(text, self._opens)]
            self._say(certain, parts)
            return text[len(certain) :]
        at, tag = found
        self._say(text[:at].rstrip(), parts)
        self._said = False
        rest = text[at + len(tag) :]
        if tag == CALL:
            return self._begin_call(rest, CALL_END, parts, last=last)
        self._thinking = True
        return rest

    def _begin_call(self, text: str, end: str | None, parts: list[Part], *, last: bool) -> str:
        self._call, self._call_end = CallReader(self._call_prefix), end
        self._bare_call = False
        return self._in_call(text, parts, last=last)

    def _in_reasoning(self, text: str, parts: list[Part], *, last: bool) -> str:
        if not self._said:
            text = text.lstrip()
        at = text.find(THINK_END)
        certain = text[:at] if at >= 0 else text if last else text[: len(text) - _held_back(text, [THINK_END])]
        if thought := certain.rstrip() if at >= 0 else certain:
            self._said = True
            parts.append(Reasoning(thought))
        if at < 0:
            return text[len(certain) :]
        self._thinking, self._said = False, False
        return text[at + len(THINK_END) :]

    def _in_call(self, text: str, parts: list[Part], *, last: bool) -> str:
        assert self._call is not None
        at = text.find(self._call_end) if self._call_end else -1
        certain = text[:at] if at >= 0 else text
        if at < 0 and self._call_end and not last:
            certain = text[: len(text) - _held_back(text, [self._call_end])]
        rest = self._call.push(certain)
        self._take(self._call.parts(), parts)
        if at >= 0:
            self._take(self._call.finish(), parts)
            self._call = None
            return text[at + len(self._call_end or "") :]
        if self._call_end is None and self._call.ended:
            self._call = None
            return rest
        return text[len(certain) :]

    def _take(self, made: Sequence[str | CallBegan | CallInput | CallEnded], parts: list[Part]) -> None:
        self.called = self.called or any(isinstance(part, CallBegan) for part in made)
        parts.extend(made)

    def _say(self, text: str, parts: list[Part]) -> None:
        if text:
            self._said = True
            parts.append(text)


_SPACE = re.compile(r"\s+$")


def _held_back(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of ``text`` that may belong to a tag: its beginning, and white space before it."""
    longest = max((len(tag) for tag in tags), default=1) - 1
    held = next((n for n in range(min(longest, len(text)), 0, -1) if any(t.startswith(text[-n:]) for t in tags)), 0)
    space = _SPACE.search(text, 0, len(text) - held)
    return held + (len(space[0]) if space else 0)
