"""Bad input over the wire: a 4xx in the dialect's own shape; the fleet goes on, and nothing of it stays behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.fleet import Fleet, open_files, proven, until
from support.load import ask, question

pytestmark = pytest.mark.e2e

CONVERSE, STREAM, CHAT = "/model/any/converse", "/model/any/converse-stream", "/v1/chat/completions"
FAR_TOO_LONG = question(1, 4000)
NAMES = ("gateway", "prefill-0", "decode-0", "llama-server")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": text}]}


def bedrock(**changes: Any) -> bytes:
    return json.dumps({"messages": [user("hello")], **changes}).encode()


def chat(**changes: Any) -> bytes:
    return json.dumps({"model": "any", "messages": [{"role": "user", "content": "hello"}], **changes}).encode()


CASES: dict[str, tuple[str, bytes, int, str]] = {
    "unknown model": ("/model/nobody/converse", bedrock(), 400, "model identifier is invalid"),
    "unknown model, openai": (CHAT, chat(model="nobody"), 404, "nobody"),
    "no messages": (CONVERSE, bedrock(messages=[]), 400, "user message"),
    "no messages, openai": (CHAT, chat(messages=[]), 400, "'messages' is empty"),
    "malformed messages": (STREAM, bedrock(messages={"role": "user"}), 400, "Expected `array`"),
    "malformed messages, openai": (CHAT, chat(messages=["hello"]), 400, "Expected `object`"),
    "beyond the context": (CONVERSE, bedrock(messages=[user(FAR_TOO_LONG)]), 400, "long"),
    "beyond the context, openai": (CHAT, chat(messages=[{"role": "user", "content": FAR_TOO_LONG}]), 400, "2560"),
    "maxTokens 0": (CONVERSE, bedrock(inferenceConfig={"maxTokens": 0}), 400, "maxTokens"),
    "max_tokens 0": (CHAT, chat(max_tokens=0), 400, "at least 1"),
    "negative temperature": (STREAM, bedrock(inferenceConfig={"temperature": -1}), 400, "temperature"),
    "negative temperature, openai": (CHAT, chat(temperature=-1, stream=True), 400, "temperature"),
    "image": (STREAM, bedrock(messages=[{"role": "user", "content": [{"image": {"format": "png"}}]}]), 400, "image"),
    "image, openai": (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "image_url"),
    "invalid UTF-8": (CONVERSE, bedrock().replace(b"hello", b"\xff\xfe"), 400, "UTF-8"),
    "invalid UTF-8, openai": (CHAT, chat().replace(b"hello", b"\xff\xfe"), 400, "UTF-8"),
    "invalid JSON": (STREAM, b'{"messages": [', 400, "JSON"),
    "empty body, openai": (CHAT, b"", 400, "empty"),
    "50 MB": (CONVERSE, bedrock(messages=[user("x" * 50_000_000)]), 400, "body is over"),
    "50 MB, openai": (CHAT, chat(messages=[{"role": "user", "content": "x" * 50_000_000}]), 413, "body is over"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tiny_fleet: Fleet) -> Iterator[None]:
    """The same processes, no more open files, nothing in flight, and the pair still serves."""
    assert ask(tiny_fleet.url, 1500, 60, 4, pair=True).finish == "length"
    pids = {name: tiny_fleet.pid(name) for name in NAMES}
    files = {name: open_files(pid) for name, pid in pids.items()}
    folder = sorted(path.name for path in tiny_fleet.rundir.rglob("*"))
    yield
    assert {name: tiny_fleet.pid(name) for name in NAMES} == pids
    for name, pid in pids.items():
        until(lambda name=name, pid=pid: open_files(pid) <= files[name] + 4, 20, f"{name} has closed its files")
    assert sorted(path.name for path in tiny_fleet.rundir.rglob("*")) == folder
    assert not [record for record in tiny_fleet.records() if record["status"] == "running"]
    asked = [ask(tiny_fleet.url, 1501 + i, 20, 4, pair=True) for i in range(6)]
    assert sum(proven(tiny_fleet.record(one.request_id)) for one in asked) > 0


@pytest.mark.parametrize("what", CASES)
def test_refused(tiny_fleet: Fleet, what: str) -> None:
    path, body, status, words = CASES[what]
    answer = httpx.post(f"{tiny_fleet.url}{path}", content=body, timeout=30)
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["x-request-id"]
    if path == CHAT:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        message = error["message"]
    else:
        assert answer.headers["x-amzn-errortype"].startswith("ValidationException:")
        assert set(answer.json()) == {"message"}
        message = answer.json()["message"]
    assert words in message


@pytest.mark.parametrize("share", [0, 3, 40, 200])
def test_half_sent(tiny_fleet: Fleet, share: int) -> None:
    """Clients that stop in the middle of the line, the headers, the body."""
    body = chat(stream=True)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", tiny_fleet.port), 5) as half:
            half.sendall((head + body)[:share])
    known = httpx.get(f"{tiny_fleet.url}/diptych/requests?limit=50", timeout=10).json()["requests"]
    answer = httpx.post(f"{tiny_fleet.url}{CHAT}", content=_letters(1500, "QXZVK"[share % 5]), timeout=30)
    assert answer.status_code == 200, "the service goes on"
    now = httpx.get(f"{tiny_fleet.url}/diptych/requests?limit=50", timeout=10).json()["requests"]
    new = {record["id"] for record in now} - {record["id"] for record in known}
    assert new == {answer.headers["x-request-id"]}, "half a request is none"


def test_as_long_as_it_fits(tiny_fleet: Fleet) -> None:
    """The longest prompt that is taken leaves room for one token; one more is refused, with both numbers."""
    low, high = 100, 2560
    while high - low > 1:
        middle = (low + high) // 2
        answer = httpx.post(f"{tiny_fleet.url}{CHAT}", content=_letters(middle), timeout=30)
        low, high = (middle, high) if answer.status_code == 200 else (low, middle)
    longest = httpx.post(f"{tiny_fleet.url}{CHAT}", content=_letters(low, "Q"), timeout=30)
    usage = longest.json()["usage"]
    assert usage["prompt_tokens"] == 2559
    assert usage["completion_tokens"] == 1
    assert longest.json()["choices"][0]["finish_reason"] == "length"
    proven(tiny_fleet.record(longest.headers["x-request-id"]))
    refused = httpx.post(f"{tiny_fleet.url}{CHAT}", content=_letters(high), timeout=30)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "2560" in refused.json()["error"]["message"]


def _letters(count: int, letter: str = "Z") -> bytes:
    """So many letters that no merge joins, a token each."""
    return chat(messages=[{"role": "user", "content": letter * count}], service_tier="priority", ignore_eos=True)
