"""The policy itself: what it finds, and that a stream is judged as its whole text is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych.config import GuardrailSettings, RegexSettings
from diptych.errors import ConfigError
from diptych.gateway.guardrails.patterns import FORMS
from diptych.gateway.guardrails.policy import Guardrails, blocks, guardrail_of, masked
from diptych.gateway.guardrails.window import Window

FOUND = {
    "EMAIL": ["a.b+c@mail.example.com", "x@y.io"],
    "PHONE": ["+49 30 1234567", "(555) 123-4567", "555-123-4567", "5551234567"],
    "CREDIT_DEBIT_CARD_NUMBER": ["4111 1111 1111 1111", "4111111111111111", "378282246310005", "5500-0000-0000-0004"],
    "US_SOCIAL_SECURITY_NUMBER": ["123-45-6789"],
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER": ["912-70-1234"],
    "UK_NATIONAL_INSURANCE_NUMBER": ["AB 12 34 56 C", "AB123456C"],
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"],
    "IP_ADDRESS": ["192.168.0.1", "2001:db8::1", "::1"],
    "MAC_ADDRESS": ["00:1A:2b:3C:4d:5E"],
    "URL": ["https://example.com/a?b=c"],
    "AWS_ACCESS_KEY": ["AKIAIOSFODNN7EXAMPLE"],
    "AWS_SECRET_KEY": ["wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"],
}
NOT_FOUND = {
    "EMAIL": ["a@b", "@home", "one @ two.com"],
    "PHONE": ["12", "3.14159", "in 2024"],
    "CREDIT_DEBIT_CARD_NUMBER": ["4111 1111 1111 1112", "1234567890123"],
    "US_SOCIAL_SECURITY_NUMBER": ["000-12-3456", "123-00-6789", "1123-45-6789"],
    "IP_ADDRESS": ["1.2.3.400", "12:30", "1.2.3"],
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER": ["DE89 3704 0044 0532 0130 01"],
    "AWS_SECRET_KEY": ["da39a3ee5e6b4b0d3255bfef95601890afd80709"],
    "UK_NATIONAL_INSURANCE_NUMBER": ["BG 12 34 56 C"],
}


def spans(entity: str, text: str) -> list[str]:
    return [text[start:end] for start, end in FORMS[entity].spans(text, 0)]


@pytest.mark.parametrize("entity", FORMS)
def test_forms(entity: str) -> None:
    for number in FOUND[entity]:
        for text in (number, f"it is {number}, he said", f"\n{number}\n", f"two: {number}, {number}"):
            assert set(spans(entity, text)) == {number}, text
        assert len(number) <= FORMS[entity].longest
    for number in NOT_FOUND.get(entity, []):
        assert spans(entity, f"it is {number} then") == []


def test_a_card_is_found_among_other_digits() -> None:
    assert spans("CREDIT_DEBIT_CARD_NUMBER", "1234 4111 1111 1111 1111 12") == ["4111 1111 1111 1111"]


def test_words_are_words_of_their_own_in_any_case() -> None:
    rail = guardrail_of(GuardrailSettings(id="r", words=("ass", "Project X")))
    assert [one.match for one in rail.find("An ASS. project \n x! assembly class Project Xs")] == [
        "ASS",
        "project \n x",
    ]


def test_overlapping_masks_leave_nothing() -> None:
    rail = guardrail_of(
        GuardrailSettings(
            id="r",
            pii={"EMAIL": "anonymize"},
            regexes=(RegexSettings(name="TAIL", pattern=r"example\.com/\w+", action="anonymize"),),
        )
    )
    text = "to bob@example.com/secret now"
    assert masked(text, rail.find(text)) == "to {EMAIL} now"


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="'broken' of guardrail 'r'"):
        guardrail_of(GuardrailSettings(id="r", regexes=(RegexSettings(name="broken", pattern="("),)))
    with pytest.raises(ConfigError, match="blank"):
        guardrail_of(GuardrailSettings(id="r", words=("  ",)))


def test_found_by_id_arn_and_version() -> None:
    rails = Guardrails([GuardrailSettings(id="house", version="2")])
    arn = "arn:aws:bedrock:us-east-1:000000000000:guardrail/house"
    assert rails.find("house", "2") is rails.find(arn, "DRAFT") is not None
    assert rails.find("house", "1") is rails.find("other", "2") is None


RAIL = guardrail_of(
    GuardrailSettings(
        id="r",
        words=("secret plan",),
        pii={
            "EMAIL": "anonymize",
            "PHONE": "anonymize",
            "IP_ADDRESS": "anonymize",
            "CREDIT_DEBIT_CARD_NUMBER": "block",
        },
        regexes=(RegexSettings(name="ticket", pattern=r"TKT-\d+", action="anonymize"),),
    )
)
PIECES = st.sampled_from([
    "a", " ", ".", "-", "1", "555", "-123-4567", "TKT-", "12", "bob@", "mail.com", "192.168", ".0.1", "secret", "plan",
    "4111 1111 1111 ", "1111", "x" * 60, " and ", "\n",
])  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.lists(PIECES, max_size=60))
@example(["x" * 60] * 6 + ["bob@", "mail.com"] + ["x" * 60] * 6)
@example(["secret", " ", " ", "plan"] + [" and "] * 100)
def test_a_stream_is_judged_as_the_whole_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = RAIL.find(text)
    window = Window(RAIL)
    said = "".join(window.push(piece) for piece in pieces) + window.finish()
    assert window.blocked == blocks(found)
    if not window.blocked:
        assert said == masked(text, found)
        return
    first = min(one.start for one in found if one.rule.action == "block")
    clean = masked(text, found, 0, first)
    assert re.sub(r"\{\w+\}", "", clean).startswith(re.sub(r"\{\w+\}", "", said)) or clean.startswith(said)


def test_text_leaves_as_soon_as_it_is_sure() -> None:
    rail = guardrail_of(GuardrailSettings(id="r", words=("damn",)))
    window = Window(rail)
    assert window.push("Well, this is fine") == "Well, this is"
    assert window.push(", dam") == " fine"
    assert window.push("n") == ","
    assert window.push(" it") == ""
    assert window.finish() == ""
    assert window.blocked
