"""Token ids that a stream left out, found again by their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diptych.engines.llamacpp.spelling import Speller

BYTES = [bytes([value]) for value in range(256)]
PIECES = [b"", *BYTES, b" \xf0\x9f", "日".encode()[:2], b"ab"]
SPELLER = Speller(PIECES)


def byte(value: int) -> int:
    return value + 1


def test_an_emoji_of_three_tokens() -> None:
    emoji = "😀".encode()
    assert SPELLER.before(byte(emoji[3]), " 😀", 2) == (257, byte(emoji[2]))


def test_the_count_chooses_the_spelling() -> None:
    tail = byte("日".encode()[2])
    assert SPELLER.before(tail, "日", 1) == (258,)
    assert SPELLER.before(tail, "日", 2) == tuple(byte(value) for value in "日".encode()[:2])


@given(st.text(min_size=1, max_size=4), st.data())
def test_whatever_is_found_reads_the_same_and_has_the_count(text: str, data: st.DataObject) -> None:
    raw = text.encode(errors="surrogatepass") if text.isprintable() else b""
    if len(raw) < 2:
        return
    missing = data.draw(st.integers(1, len(raw) - 1))
    found = SPELLER.before(byte(raw[-1]), text, missing)
    assert len(found) == missing
    spelled = b"".join(PIECES[token] for token in found) + raw[-1:]
    assert spelled == raw or found == SPELLER.unknown(missing)
    if missing == len(raw) - 1:
        assert spelled == raw


def test_damaged_text_keeps_the_count() -> None:
    assert SPELLER.before(byte(0x41), "\ufffdA", 1) == (byte(0xE2),)
    assert SPELLER.unknown(3) == (byte(0xE2),) * 3
