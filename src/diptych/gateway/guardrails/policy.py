"""A guardrail: its rules, and what they find in a text. Pure.

words      denied wherever they stand as words of their own, in any case
PII        by form (:mod:`patterns`)      } denied, or replaced by {NAME} in braces,
patterns   regular expressions            } or only reported
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from diptych.config import GuardrailSettings
from diptych.errors import ConfigError
from diptych.gateway.guardrails.patterns import FORMS, Form, Span

Kind = Literal["word", "pii", "regex"]
Action = Literal["block", "anonymize", "none"]
DRAFT = "DRAFT"
LONGEST_PATTERN = 256
"""Characters that a match of a configured pattern may have in a stream; a longer one is found in its parts, or not."""
_SPACES = 8


class Spans(Protocol):
    """What finds matches in a text."""

    @property
    def longest(self) -> int: ...

    def spans(self, text: str, start: int) -> Iterator[Span]: ...


class Rule(msgspec.Struct, frozen=True):
    """``name`` is the word, the entity's type or the pattern's name."""

    kind: Kind
    name: str
    action: Action
    form: Spans
    regex: str | None = None


class Finding(msgspec.Struct, frozen=True):
    """A match of a rule at ``start`` up to ``end`` of the text."""

    rule: Rule
    match: str
    start: int
    end: int


class Guardrail(msgspec.Struct, frozen=True):
    """``hold`` is the length of text in which a match that begins is sure to end."""

    settings: GuardrailSettings
    rules: tuple[Rule, ...]
    hold: int

    def find(self, text: str, start: int = 0) -> list[Finding]:
        """Every match that begins at ``start`` or after, in order. They may overlap."""
        found = [
            Finding(rule, text[begin:end], begin, end)
            for rule in self.rules
            for begin, end in rule.form.spans(text, start)
        ]
        return sorted(found, key=lambda finding: (finding.start, -finding.end))


class Guardrails:
    """The guardrails that are configured. The draft of each is what its one version is."""

    def __init__(self, configured: Iterable[GuardrailSettings] = ()) -> None:
        self._by_id = {settings.id: guardrail_of(settings) for settings in configured}

    def __iter__(self) -> Iterator[Guardrail]:
        return iter(self._by_id.values())

    def find(self, identifier: str, version: str) -> Guardrail | None:
        """By id or ARN, and version."""
        found = self._by_id.get(identifier.rpartition("guardrail/")[2])
        return found if found is not None and version in (DRAFT, found.settings.version) else None


def guardrail_of(settings: GuardrailSettings) -> Guardrail:
    """The rules of a configured guardrail. Raises ConfigError for a pattern that is none."""
    words = [Rule("word", word, "block", _word(word)) for word in settings.words]
    pii = [Rule("pii", entity, action, FORMS[entity]) for entity, action in settings.pii.items()]
    regexes = [
        Rule("regex", regex.name, regex.action, _regex(settings.id, regex.name, regex.pattern), regex.pattern)
        for regex in settings.regexes
    ]
    rules = (*words, *pii, *regexes)
    return Guardrail(settings, rules, max((rule.form.longest for rule in rules), default=0) + 1)


def _word(word: str) -> Form:
    parts = word.split()
    if not parts:
        raise ConfigError("a guardrail's word is blank; leave it out")
    space = rf"\s{{1,{_SPACES}}}"
    pattern = rf"(?<!\w){space.join(map(re.escape, parts))}(?!\w)"
    longest = sum(map(len, parts)) + _SPACES * (len(parts) - 1)
    return Form(re.compile(pattern, re.IGNORECASE), longest)


def _regex(guardrail: str, name: str, pattern: str) -> Form:
    try:
        return Form(re.compile(pattern), LONGEST_PATTERN, bool)
    except re.error as exc:
        raise ConfigError(f"the pattern '{name}' of guardrail '{guardrail}' is no regular expression: {exc}") from None


def blocks(findings: Iterable[Finding]) -> bool:
    return any(finding.rule.action == "block" for finding in findings)


def masks(findings: Iterable[Finding]) -> bool:
    return any(finding.rule.action == "anonymize" for finding in findings)


def masked(text: str, findings: Sequence[Finding], start: int = 0, end: int | None = None) -> str:
    """``text`` from ``start`` to ``end`` with what is to be anonymised in braces. Overlapping matches become one."""
    out: list[str] = []
    at, stop = start, len(text) if end is None else end
    for finding in findings:
        if finding.rule.action != "anonymize" or finding.end <= at:
            continue
        if finding.start >= at:
            out += [text[at : finding.start], f"{{{finding.rule.name}}}"]
        at = finding.end
    return "".join([*out, text[at:stop]])
