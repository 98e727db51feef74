from __future__ import annotations

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from diptych.gateway.event_stream import event_encoder, exception_frame


@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_botocore_decodes_what_we_encode(payloads: list[bytes]) -> None:
    encode = event_encoder("contentBlockDelta")
    buffer = EventStreamBuffer()
    buffer.add_data(b"".join(encode(payload) for payload in payloads))
    messages = list(buffer)
    assert [message.payload for message in messages] == payloads
    for message in messages:
        assert message.headers == {
            ":event-type": "contentBlockDelta",
            ":content-type": "application/json",
            ":message-type": "event",
        }


def test_a_frame_from_the_cache_equals_the_first() -> None:
    encode = event_encoder("metadata")
    assert encode(b"abc") == encode(b"abc") == event_encoder("metadata")(b"abc")
    assert encode(b"abd") != encode(b"abc")


def test_an_exception_frame_says_which() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(exception_frame("throttlingException", b'{"message":"m"}'))
    (message,) = buffer
    assert message.headers[":message-type"] == "exception"
    assert message.headers[":exception-type"] == "throttlingException"


def test_a_flipped_byte_is_noticed() -> None:
    frame = bytearray(event_encoder("metadata")(b"abc"))
    frame[-6] ^= 1
    buffer = EventStreamBuffer()
    buffer.add_data(bytes(frame))
    with pytest.raises(ChecksumMismatch):
        next(buffer)
