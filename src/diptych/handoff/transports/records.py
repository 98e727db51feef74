"""How KV bytes are written on a plain TCP connection: records, sealed with AES-GCM or in clear. Pure.

    frame    | record | record | ... | an empty record |       acknowledged, and sent again, as a whole
    record   | header, 36 bytes | bytes of one chunk of one image, sealed | tag, 16 bytes (none in clear) |
    header   | session u64 | seq u64 | index u32 | image u32 | token_start u32 | tokens u32 (0: end) | length u32 |

The key is made for one session and travels to the writer over the encrypted control connection. The nonce is
(seq, index): a record is sealed once, and what is sent again after a cut are the same bytes, so no nonce ever
seals two texts. The header is authenticated with the bytes, so a record cannot be taken for another one.
"""

from __future__ import annotations

import struct

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from diptych.errors import CorruptKV
from diptych.handoff.region import Bytes
from diptych.handoff.transports.wire import Entry

KEY_BYTES = 16
TAG_BYTES = 16

_HEADER = struct.Struct("<QQIIIII")
_NONCE = struct.Struct("<QI")
HEADER_BYTES = _HEADER.size


class Header(msgspec.Struct, frozen=True):
    """The ``index``-th record of frame ``seq``; ``length`` counts the bytes after the header."""

    session: int
    seq: int
    index: int
    entry: Entry
    length: int

    @property
    def ends_frame(self) -> bool:
        return self.entry.tokens == 0


def read_header(memory: Bytes) -> Header:
    """The header at the beginning of ``memory``."""
    session, seq, index, image, token_start, tokens, length = _HEADER.unpack_from(memory.data)
    return Header(session, seq, index, Entry(image, token_start, tokens), length)


class Box:
    """Writes and reads the records of one session; an empty key leaves them in clear."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key) if key else None
        self.tag_bytes = TAG_BYTES if key else 0
        self.overhead = HEADER_BYTES + self.tag_bytes

    def write(self, place: Bytes, session: int, seq: int, index: int, entry: Entry, payload: Bytes) -> None:
        """The record of ``payload`` into ``place``, which has its size plus ``overhead``."""
        body = place[HEADER_BYTES:]
        _HEADER.pack_into(place.data, 0, session, seq, index, entry.image, entry.token_start, entry.tokens, body.nbytes)
        if self._cipher is None:
            body[:] = payload
        else:
            self._cipher.encrypt_into(_NONCE.pack(seq, index), payload.data, place[:HEADER_BYTES].data, body.data)

    def read(self, header: Header, record: Bytes, place: Bytes) -> None:
        """The payload of a whole record into ``place``, which is of its size.

        Raises CorruptKV where the tag is not ours; what is in ``place`` then means nothing.
        """
        body = record[HEADER_BYTES:]
        if self._cipher is None:
            place[:] = body
            return
        try:
            nonce, about = _NONCE.pack(header.seq, header.index), record[:HEADER_BYTES]
            self._cipher.decrypt_into(nonce, body.data, about.data, place.data)
        except InvalidTag:
            raise CorruptKV(f"record {header.seq}.{header.index} is not what its writer sealed") from None
