from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.gateway.text import StopMatcher, TextAssembler
from support.chat import ChatML

CHAT = ChatML()


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.matched is not None:
            return out, matcher.matched
    return out + matcher.flush(), None


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Character by character: the first stop string to be complete, the longest where several are."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=500)
@given(
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text("ab.", max_size=24),
    cuts=st.lists(st.integers(0, 24), max_size=8),
)
def test_where_a_text_is_cut_does_not_depend_on_how_it_is_split(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert run(stops, pieces) == expected(stops, text)


def test_text_that_may_become_a_stop_is_held_back_and_let_go() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push(piece) for piece in ("a", "E", "N", "x", "E")] == ["a", "", "", "ENx", ""]
    assert matcher.flush() == "E"


@given(st.text(max_size=40))
def test_characters_split_over_tokens_come_out_whole(text: str) -> None:
    tokens = CHAT.encode(text)
    assembler = TextAssembler(CHAT.decoder(), CHAT.end_tokens)
    pieces = [assembler.push((token,)) for token in tokens]
    said = "".join(part for parts in pieces for part in parts)
    assert said + assembler.finish() == text
    assert "\ufffd" not in said or "\ufffd" in text


def test_end_tokens_yield_no_text_and_a_cut_character_is_replaced() -> None:
    assembler = TextAssembler(CHAT.decoder(), CHAT.end_tokens)
    first_byte = CHAT.encode("é")[:1]
    assert assembler.push((*CHAT.encode("hi"), *CHAT.end_tokens)) == ["h", "i"]
    assert assembler.push(first_byte) == []
    assert assembler.finish() == "\ufffd"


@pytest.mark.parametrize("held", ["E", "EN"])
def test_what_was_held_back_leaves_at_the_end(held: str) -> None:
    assembler = TextAssembler(CHAT.decoder(), CHAT.end_tokens, ["END"])
    assert assembler.push(CHAT.encode("x" + held)) == ["x"]
    assert assembler.finish() == held
    assert assembler.stopped_at is None


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    assembler = TextAssembler(CHAT.decoder(), CHAT.end_tokens, ["cd"])
    assert assembler.push(CHAT.encode("abcdef")) == ["a", "b"]
    assert (assembler.stopped_at, assembler.tokens_read) == ("cd", 4)
