"""Many streams read by one thread: how many tokens came, and when. Plain sockets, so that it costs little itself."""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Any, Literal

Dialect = Literal["event_stream", "sse"]
_MARK: dict[Dialect, bytes] = {"event_stream": b"contentBlockDelta", "sse": b'{"content":"'}
_PATH: dict[Dialect, str] = {"event_stream": "/model/{}/converse-stream", "sse": "/v1/chat/completions"}
_END = b"0\r\n\r\n"


def _body(dialect: Dialect, model: str, tokens: int, seed: int) -> bytes:
    if dialect == "sse":
        body: dict[str, Any] = {
            "model": model, "messages": [{"role": "user", "content": "go"}], "max_tokens": tokens,
            "seed": seed, "ignore_eos": True, "stream": True,
        }  # fmt: skip
    else:
        body = {
            "messages": [{"role": "user", "content": [{"text": "go"}]}],
            "inferenceConfig": {"maxTokens": tokens},
            "additionalModelRequestFields": {"seed": seed, "ignore_eos": True},
        }
    return json.dumps(body).encode()


def request_bytes(dialect: Dialect, model: str, tokens: int, seed: int) -> bytes:
    """One streamed request over HTTP/1.1."""
    body = _body(dialect, model, tokens, seed)
    head = f"POST {_PATH[dialect].format(model)} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Reader:
    """One stream. ``gaps_s`` are the times between tokens as they were read; several of one read have gap 0."""

    def __init__(self, port: int, dialect: Dialect, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.tokens = 0
        self.gaps_s: list[float] = []
        self.first_s = 0.0
        self.done = False
        self._mark = _MARK[dialect]
        self._tail = b""
        self._last_s = 0.0
        self.sent_s = time.perf_counter()
        self.socket.sendall(request)
        self.socket.setblocking(False)

    def read(self) -> None:
        """Takes what is there."""
        data = self.socket.recv(1 << 18)
        now_s = time.perf_counter()
        whole = self._tail + data
        new = whole.count(self._mark)
        self.done = not data or whole.endswith(_END)
        self._tail = whole[-len(self._mark) + 1 :]
        if not new:
            return
        if self.tokens:
            self.gaps_s.append(now_s - self._last_s)
            self.gaps_s.extend([0.0] * (new - 1))
        else:
            self.first_s = now_s - self.sent_s
        self.tokens += new
        self._last_s = now_s


def drain(port: int, dialect: Dialect, requests: list[bytes]) -> list[Reader]:
    """Starts all streams and reads them to their ends."""
    selector = selectors.DefaultSelector()
    readers = [Reader(port, dialect, request) for request in requests]
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    while selector.get_map():
        for key, _ in selector.select(30):
            reader = key.data
            reader.read()
            if reader.done:
                selector.unregister(reader.socket)
                reader.socket.close()
    return readers
