"""The token ids that llama-server leaves out of a stream. Pure.

A streamed event names one token id. While a token ends inside a UTF-8 character the server holds it back, and
the event that completes the character carries the text of all of them but only the last one's id. The count
of predicted tokens in the event tells how many are missing; their ids follow from the text: token ids whose
bytes, one after another, are exactly it.
"""

from __future__ import annotations

from collections.abc import Sequence

LONE_LEAD_BYTE = b"\xe2"


class Speller:
    """Finds token ids by their bytes. ``pieces[id]`` are a token's bytes; b"" for one that has no text."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}

    def before(self, last: int, text: str, missing: int) -> tuple[int, ...]:
        """The ``missing`` ids in front of ``last``, all of which together read ``text``.

        Where the text is damaged (the model wrote invalid UTF-8, which the server replaces) no ids spell it:
        each missing one is then the token of a lone lead byte, which reads as the same replacement character.
        """
        whole, tail = text.encode(), self._pieces[last]
        body = whole[: len(whole) - len(tail)] if whole.endswith(tail) else b""
        return self._spell(body, missing) or self.unknown(missing)

    def unknown(self, missing: int) -> tuple[int, ...]:
        return (self._ids.get(LONE_LEAD_BYTE, 0),) * missing

    def _spell(self, body: bytes, count: int) -> tuple[int, ...] | None:
        if count == 0 or not body:
            return () if count == 0 and not body else None
        for end in range(len(body) - count + 1, 0, -1):
            token = self._ids.get(body[:end])
            rest = None if token is None else self._spell(body[end:], count - 1)
            if token is not None and rest is not None:
                return (token, *rest)
        return None
