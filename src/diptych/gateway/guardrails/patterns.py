"""Sensitive information that has a form, by Bedrock's names of its entities. Pure.

What has no form (a name, an address, an age) takes a model to find, and is not here. Every pattern is bounded in
length: a stream is held back by the longest of them and by no more.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

import msgspec

Span = tuple[int, int]


class Form(msgspec.Struct, frozen=True):
    """Matches of ``pattern`` that pass ``check``. ``longest`` bounds a match in characters."""

    pattern: re.Pattern[str]
    longest: int
    check: Callable[[str], bool] | None = None

    def spans(self, text: str, start: int) -> Iterator[Span]:
        """Matches from ``start`` on. What fails its check hides nothing that begins within it."""
        at = start
        while found := self.pattern.search(text, at):
            if self.check is None or self.check(found[0]):
                yield found.span()
                at = max(found.end(), found.start() + 1)
            else:
                at = found.start() + 1


class Cards(msgspec.Struct, frozen=True):
    """Card numbers: 13 to 19 digits in groups, with a valid check digit, wherever among other digits they begin."""

    longest: int = 37

    def spans(self, text: str, start: int) -> Iterator[Span]:
        at = start
        while found := _CARD.search(text, at):
            end = next((e for e in _group_ends(text, found) if _luhn(text[found.start() : e])), None)
            if end is not None:
                yield found.start(), end
            at = end if end is not None else found.start() + 1


_CARD = re.compile(r"(?<!\d)[2-6](?:[ -]?\d){12,18}")


def _group_ends(text: str, found: re.Match[str]) -> Iterator[int]:
    """Where a number that begins with ``found`` may end, longest first: after 13 digits or more, and before none."""
    for end in range(found.end(), found.start() + 12, -1):
        number = text[found.start() : end]
        if number[-1].isdigit() and not text[end : end + 1].isdigit() and sum(map(str.isdigit, number)) >= 13:
            yield end


def _luhn(number: str) -> bool:
    digits = [int(char) for char in reversed(number) if char.isdigit()]
    return sum(sum(divmod(digit * (1 + at % 2), 10)) for at, digit in enumerate(digits)) % 10 == 0


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_iban(text: str) -> bool:
    """ISO 13616: the country and check digits moved to the end, letters as numbers, leave 1 modulo 97."""
    letters = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in letters[4:] + letters[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    return 7 <= sum(map(str.isdigit, text)) <= 15


def _is_mixed(text: str) -> bool:
    """Random in upper case, lower case and digits, as secrets are and hexadecimal digests are not."""
    return any(map(str.isupper, text)) and any(map(str.islower, text)) and any(map(str.isdigit, text))


def _form(pattern: str, longest: int, check: Callable[[str], bool] | None = None) -> Form:
    return Form(re.compile(pattern), longest, check)


FORMS: dict[str, Form | Cards] = {
    "EMAIL": _form(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[^\W_][\w-]{0,62}\.){1,3}[^\W\d_]{2,24}(?!\w)", 282),
    "PHONE": _form(
        r"(?<![\w+])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{2,4}\)|\d{2,4})[ .-]?\d{3,4}[ .-]?\d{3,4}(?!\w)", 24, _is_phone
    ),
    "CREDIT_DEBIT_CARD_NUMBER": Cards(),
    "US_SOCIAL_SECURITY_NUMBER": _form(r"(?<!\d)(?!000|666|9)\d{3}[- ](?!00)\d{2}[- ](?!0000)\d{4}(?!\d)", 11),
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER": _form(r"(?<!\d)9\d{2}[- ][5-9]\d[- ]\d{4}(?!\d)", 11),
    "UK_NATIONAL_INSURANCE_NUMBER": _form(
        r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)", 13
    ),
    "INTERNATIONAL_BANK_ACCOUNT_NUMBER": _form(
        r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", 44, _is_iban
    ),
    "IP_ADDRESS": _form(r"(?<![\w.:])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{3,39})(?!\w)", 39, _is_address),
    "MAC_ADDRESS": _form(r"(?<![\w:-])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?!\w)", 17),
    "URL": _form(r"(?<!\w)https?://[^\s<>\"']{1,256}(?<![.,;:!?])", 264),
    "AWS_ACCESS_KEY": _form(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])", 20),
    "AWS_SECRET_KEY": _form(r"(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])", 40, _is_mixed),
}
