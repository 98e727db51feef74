"""Frames of ``application/vnd.amazon.eventstream``. Pure.

    [u32 total][u32 headers][u32 crc of these 8 bytes] headers payload [u32 crc of all before]

Only the payload differs between the events of one kind, so everything before it, and the running CRC up
to it, is kept per payload length.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

_PRELUDE = Struct(">II")
_U32 = Struct(">I")
_STRING = 7
_CACHED_LENGTHS = 1024


def _headers(headers: dict[str, str]) -> bytes:
    out = bytearray()
    for name, value in headers.items():
        raw_name, raw_value = name.encode(), value.encode()
        out += bytes((len(raw_name),)) + raw_name + bytes((_STRING,))
        out += len(raw_value).to_bytes(2, "big") + raw_value
    return bytes(out)


class FrameEncoder:
    """Frames of one kind of message."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = _headers(headers)
        self._heads: dict[int, tuple[bytes, int]] = {}

    def __call__(self, payload: bytes) -> bytes:
        size = len(payload)
        head, crc = self._heads.get(size) or self._head(size)
        return head + payload + _U32.pack(crc32(payload, crc))

    def _head(self, size: int) -> tuple[bytes, int]:
        prelude = _PRELUDE.pack(16 + len(self._headers) + size, len(self._headers))
        head = prelude + _U32.pack(crc32(prelude)) + self._headers
        made = head, crc32(head)
        if size < _CACHED_LENGTHS:
            self._heads[size] = made
        return made


def event_encoder(event_type: str) -> FrameEncoder:
    """Frames of the JSON event ``event_type``."""
    return FrameEncoder({":event-type": event_type, ":content-type": "application/json", ":message-type": "event"})


def exception_frame(exception_type: str, payload: bytes) -> bytes:
    """The frame that ends a stream with a modelled exception."""
    headers = {
        ":exception-type": exception_type,
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return FrameEncoder(headers)(payload)
