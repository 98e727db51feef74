"""What only real sockets show: hang-ups, half-sent requests, big bodies, and shutting down under way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config

from support.process import GatewayProcess

FOREVER = {"messages": [{"role": "user", "content": [{"text": "forever abc"}]}]}
CHAT_FOREVER = {"model": "tiny", "messages": [{"role": "user", "content": "forever abc"}]}


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/model/tiny/converse-stream", FOREVER), ("/v1/chat/completions", {**CHAT_FOREVER, "stream": True})],
)
def test_a_hang_up_in_a_stream_cancels_the_request(
    gateway: GatewayProcess, http2: bool, path: str, body: dict[str, Any]
) -> None:
    before = gateway.health()["ended"]["cancelled"]
    with (
        httpx.Client(http1=not http2, http2=http2, base_url=gateway.url) as client,
        client.stream("POST", path, json=body) as answer,
    ):
        assert answer.status_code == 200
        events = answer.iter_raw()
        next(events)
        assert gateway.health()["running"] == 1
    assert eventually(lambda: gateway.health()["ended"]["cancelled"] == before + 1)
    assert gateway.health()["running"] == 0


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_hang_up_while_waiting_for_a_whole_answer_cancels_it(gateway: GatewayProcess, http2: bool, n: int) -> None:
    before = gateway.health()["ended"]["cancelled"]
    with (
        httpx.Client(http1=not http2, http2=http2, base_url=gateway.url) as client,
        contextlib.suppress(httpx.ReadTimeout),
    ):
        client.post("/v1/chat/completions", json={**CHAT_FOREVER, "n": n}, timeout=0.3)
    assert eventually(lambda: gateway.health()["ended"]["cancelled"] == before + n)


def test_a_client_that_leaves_within_its_body_leaves_nothing(gateway: GatewayProcess) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert gateway.health()["running"] == 0


@pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", b"408"), ("/model/tiny/converse", b"400")])
def test_a_half_sent_request_is_answered_in_time(gateway: GatewayProcess, path: str, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        client.sendall(head.encode() + b'{"model"')
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"did not arrive within" in answer


def test_a_client_that_drips_its_body_is_cut_off(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    client.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = client.recv(65536)
        stop.set()
        dripping.join()
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_of_50_mb_is_refused_and_the_client_can_read_why(gateway: GatewayProcess) -> None:
    body = b'{"messages":[{"role":"user","content":[{"text":"' + b"x" * 50_000_000 + b'"}]}]}'
    answer = httpx.post(f"{gateway.url}/model/tiny/converse", content=body, timeout=30)
    assert answer.status_code == 400
    assert "over the limit" in answer.json()["message"]
    config = Config(retries={"max_attempts": 1, "mode": "standard"})
    client = boto3.client(
        "bedrock-runtime", endpoint_url=gateway.url, region_name="us-east-1",
        aws_access_key_id="a", aws_secret_access_key="b", config=config,
    )  # fmt: skip
    message = {"role": "user", "content": [{"text": "x" * 50_000_000}]}
    with pytest.raises(client.exceptions.ValidationException, match="over the limit"):
        client.converse(modelId="tiny", messages=[message])
    client.close()


def test_a_header_of_1_mb_is_refused(gateway: GatewayProcess) -> None:
    answer = httpx.get(f"{gateway.url}/health", headers={"x-big": "x" * 1_000_000})
    assert 400 <= answer.status_code < 500
    assert gateway.health()["status"] == "ok"


def test_a_stream_that_is_read_slowly_does_not_hold_up_another(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({**CHAT_FOREVER, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)
        time.sleep(0.3)
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "say hello"}]},
        )
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert eventually(lambda: gateway.health()["running"] == 0)


@pytest.mark.parametrize("path", ["/model/tiny/converse-stream", "/v1/chat/completions"])
def test_sigterm_ends_streams_with_an_error_event_and_exits_with_0(path: str) -> None:
    gateway = GatewayProcess(GRACE_S="0.2")
    body = FOREVER if path.startswith("/model") else {**CHAT_FOREVER, "stream": True}
    read = b""
    with httpx.stream("POST", gateway.url + path, json=body, timeout=20) as answer:
        for part in answer.iter_raw():
            if not read:
                gateway.process.terminate()
            read += part
    assert b"shutting down" in read[-400:]
    errors = gateway.wait()
    assert (gateway.process.returncode, errors) == (0, "")


def test_sigterm_with_idle_connections_exits_with_0() -> None:
    gateway = GatewayProcess()
    with httpx.Client() as h1, httpx.Client(http1=False, http2=True) as h2:
        for client in (h1, h2):
            assert client.get(f"{gateway.url}/health").status_code == 200
        errors = gateway.stop()
    assert (gateway.process.returncode, errors) == (0, "")


def test_a_port_in_use_is_one_line(gateway: GatewayProcess) -> None:
    second = GatewayProcess(PORT=str(gateway.port))
    errors = second.wait()
    assert second.process.returncode == 1
    assert errors.count("\n") == 1
    assert f"Cannot listen on 127.0.0.1:{gateway.port}" in errors
