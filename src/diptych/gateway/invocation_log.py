"""What was asked and answered, in the form of Bedrock's ModelInvocationLog 1.0, a line of JSON for each invocation.

The answer is taken on its way out, so the log costs nothing where it is off. A thread of its own writes the lines.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import Message, Send

from diptych.errors import ConfigError
from diptych.gateway.responses import to_json
from diptych.types import RequestRecord

ACCOUNT = "000000000000"
_SSE_DATA = b"data: "


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of one invocation, beside its bodies."""

    request_id: str
    operation: str
    model_id: str
    key: str | None
    status: int
    error: str | None
    metadata: dict[str, Any]
    record: RequestRecord | None


class Tap:
    """Keeps what a response sends."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[bytes] = []
        self.media_type = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            self.media_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0]
        else:
            self._parts.append(message.get("body", b""))
        await self._send(message)

    def answer(self) -> Any:
        """The JSON that was sent, or the list of a stream's events."""
        body = b"".join(self._parts)
        if self.media_type == "application/vnd.amazon.eventstream":
            return list(event_frames(body))
        if self.media_type == "text/event-stream":
            return [_json(line.removeprefix(_SSE_DATA)) for line in body.split(b"\n") if line.startswith(_SSE_DATA)]
        return _json(body)


def event_frames(body: bytes) -> Iterator[dict[str, Any]]:
    """The frames of an event stream as {event or exception: payload}."""
    at = 0
    while at + 12 <= len(body):
        total, headers = struct.unpack_from(">II", body, at)
        names = _headers(body[at + 12 : at + 12 + headers])
        payload = _json(body[at + 12 + headers : at + total - 4])
        yield {names.get(":event-type") or names.get(":exception-type", ""): payload}
        at += total


def _headers(raw: bytes) -> dict[str, str]:
    found, at = {}, 0
    while at < len(raw):
        name_end = at + 1 + raw[at]
        (size,) = struct.unpack_from(">H", raw, name_end + 1)
        found[raw[at + 1 : name_end].decode()] = raw[name_end + 3 : name_end + 3 + size].decode()
        at = name_end + 3 + size
    return found


def _json(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw.decode("utf-8", "replace")


def entry(about: Invocation, region: str, asked: bytes, answer: Any, media_type: str) -> dict[str, Any]:
    """A line of the log."""
    record = about.record
    read, cached = (record.prompt_tokens, record.cached_tokens) if record else (0, 0)
    line: dict[str, Any] = {
        "schemaType": "ModelInvocationLog",
        "schemaVersion": "1.0",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "accountId": ACCOUNT,
        "identity": {"arn": f"arn:aws:iam::{ACCOUNT}:user/{about.key or 'anonymous'}"},
        "region": region,
        "requestId": about.request_id,
        "operation": about.operation,
        "modelId": about.model_id,
        "input": {
            "inputContentType": "application/json",
            "inputBodyJson": _json(asked),
            "inputTokenCount": read - cached,
            "cacheReadInputTokenCount": cached,
            "cacheWriteInputTokenCount": 0,
        },
        "output": {
            "outputContentType": media_type,
            "outputBodyJson": answer,
            "outputTokenCount": record.output_tokens if record else 0,
        },
    }
    if about.error is not None:
        line["errorCode"] = about.error
    if about.metadata:
        line["requestMetadata"] = about.metadata
    if record is not None and record.served_latency != "standard":
        line["performanceConfig"] = {"latency": record.served_latency}
    return line


class InvocationLog:
    """Appends to the file at ``path``."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError when the file cannot be written."""
        self.path = path
        try:
            self._file = Path(path).open("ab")  # noqa: SIM115  # open as long as the log is
        except OSError as exc:
            raise ConfigError(f"the invocation log {path} cannot be written: {exc.strerror}") from exc
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="invocation-log", daemon=True)
        self._thread.start()

    def add(self, line: dict[str, Any]) -> None:
        self._lines.put(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._file.write(to_json(line) + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Writes what is still to be written."""
        self._lines.put(None)
        self._thread.join()
        self._file.close()
