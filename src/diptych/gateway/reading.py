"""What to look for in a model's output: reasoning where its vocabulary has the tag, calls where it was given tools."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.gateway.output import THINK, OutputReader
from diptych.gateway.ports import ChatFormat
from diptych.gateway.tools import Toolbox


def reader_for(chat: ChatFormat, prompt: Sequence[int], toolbox: Toolbox, call_prefix: str) -> OutputReader | None:
    """The reader of a turn after ``prompt``; None where all of it is text."""
    think = chat.encode(THINK)
    reasoning = len(think) == 1
    tools = bool(toolbox.offered)
    if not (reasoning or tools):
        return None
    thinking = reasoning and think[0] in prompt[-2:]
    return OutputReader(reasoning=reasoning, tools=tools, thinking=thinking, call_prefix=call_prefix)
