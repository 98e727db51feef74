from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.output import OutputReader, Part, Reasoning


def read(pieces: list[str], *, thinking: bool = False, reasoning: bool = True) -> list[Any]:
    """The parts put together: neighbouring text, reasoning and input become one."""
    reader = OutputReader(reasoning=reasoning, tools=True, thinking=thinking)
    parts: list[Part] = []
    for piece in pieces:
        parts += reader.push(piece)
    made: list[Any] = []
    for part in [*parts, *reader.finish()]:
        if isinstance(part, str):
            _join(made, "text", part)
        elif isinstance(part, Reasoning):
            _join(made, "thought", part.text)
        elif isinstance(part, CallBegan):
            made.append(["call", part.name, ""])
        elif isinstance(part, CallInput):
            made[-1][2] += part.json
        else:
            assert isinstance(part, CallEnded)
            made.append("end")
    assert reader.called == any(part[0] == "call" for part in made)
    return made


def _join(made: list[Any], kind: str, text: str) -> None:
    if made and made[-1][0] == kind:
        made[-1][1] += text
    else:
        made.append([kind, text])


TURNS = {
    "text": ("Just text, a < b and {x}.", [["text", "Just text, a < b and {x}."]]),
    "reasoning": ("<think>\nwhy\n</think>\n\nIt is.", [["thought", "why"], ["text", "It is."]]),
    "call": (
        '<tool_call>\n{"name": "now", "arguments": {"tz": "U}TC", "n": [1, {"a": "\\""}]}}\n</tool_call>',
        [["call", "now", '{"tz": "U}TC", "n": [1, {"a": "\\""}]}'], "end"],
    ),
    "text, then a call": (
        'Let me see. <tool_call>{"name": "f", "arguments": {}}</tool_call>\n',
        [["text", "Let me see."], ["call", "f", "{}"], "end"],
    ),
    "two calls": (
        """<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
        <tool_call>{"name": "g", "arguments": {}}</tool_call>""",
        [["call", "f", '{"x": 1}'], "end", ["call", "g", "{}"], "end"],
    ),
    "another order": (
        '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>',
        [["call", "f", '{"x": 1}'], "end"],
    ),
    "bare": ('{"name": "f", "parameters": {"x": "é"}}', [["call", "f", '{"x": "é"}'], "end"]),
    "bare, typed": ('{"type": "function", "name": "f", "parameters": {}}', [["call", "f", "{}"], "end"]),
    "bare, then text": ('{"name": "f", "arguments": {}} done', [["call", "f", "{}"], "end", ["text", "done"]]),
    "JSON that is no call": ('{"answer": 42}', [["text", '{"answer": 42}']]),
    "cut off": ('<tool_call>{"name": "f", "arguments": {"x": ', [["call", "f", '{"x": '], "end"]),
    "malformed": ("<tool_call>nonsense</tool_call>", [["text", "nonsense"]]),
    "reasoning, call": (
        '<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [["thought", "hm"], ["call", "f", "{}"], "end"],
    ),
    "a tag cut off": ("a <tool_ca", [["text", "a <tool_ca"]]),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn(turn: str) -> None:
    text, expected = TURNS[turn]
    assert read([text]) == expected
    assert read(list(text)) == expected


@settings(max_examples=300)
@given(turn=st.sampled_from(sorted(TURNS)), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_how_a_turn_is_split_changes_nothing(turn: str, cuts: list[int]) -> None:
    text, expected = TURNS[turn]
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    assert read([text[a:b] for a, b in pairwise(edges)]) == expected


@given(st.text('<>tool_cali/hnk{}" :a', max_size=60), st.integers(0, 60))
def test_any_text_is_read_to_its_end(text: str, cut: int) -> None:
    assert read([text[:cut], text[cut:]]) == read([text])


def test_reasoning_that_the_prompt_opened() -> None:
    assert read(["so ", "it is</think>", "Yes."], thinking=True) == [["thought", "so it is"], ["text", "Yes."]]


def test_a_call_is_known_before_it_is_complete() -> None:
    reader = OutputReader(reasoning=False, tools=True)
    assert reader.push('<tool_call>{"name": "f", "argu') == []
    began, first = reader.push('ments": {"a"')
    assert isinstance(began, CallBegan)
    assert first == CallInput('{"a"')
    assert reader.push(": 1}") == [CallInput(": 1}"), CallEnded()]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_arguments_arrive_as_they_were_written(value: Any) -> None:
    written = json.dumps({"v": value})
    call = f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
    assert read([call[:23], call[23:]]) == [["call", "f", written], "end"]
