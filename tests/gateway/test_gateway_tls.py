from __future__ import annotations

import contextlib
import ssl
import time
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from cryptography import x509

from diptych.gateway.tls import aws_names, certificates
from support.process import GatewayProcess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def secure(folder: Path) -> Any:
    process = GatewayProcess(TLS_FOLDER=str(folder), KEYS="1")
    process.url = process.url.replace("http:", "https:")
    yield process
    process.stop()


@pytest.mark.parametrize(("http2", "version"), [(False, "HTTP/1.1"), (True, "HTTP/2")])
def test_h1_and_h2_over_tls(secure: GatewayProcess, folder: Path, http2: bool, version: str) -> None:
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with httpx.Client(verify=trusting, http2=http2) as client:
        answer = client.get(f"{secure.url}/health")
    assert (answer.status_code, answer.http_version) == (200, version)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{secure.url}/health")


def test_one_port_speaks_h1_and_h2_with_and_without_tls_at_once(secure: GatewayProcess, folder: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    plain = secure.url.replace("https:", "http:")
    ways = [(url, http2) for url in (secure.url, plain) for http2 in (False, True)]
    with contextlib.ExitStack() as stack:
        clients = [
            (url, stack.enter_context(httpx.Client(verify=trusting, http1=not http2, http2=http2)))
            for url, http2 in ways
        ]
        for _ in range(3):
            found = [client.get(f"{url}/health").http_version for url, client in clients]
            assert found == ["HTTP/1.1", "HTTP/2"] * 2


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("http2", [False, True])
def test_a_stream_and_a_hang_up_behind_the_one_port(
    secure: GatewayProcess, folder: Path, scheme: str, http2: bool
) -> None:
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    url = f"{scheme}://127.0.0.1:{secure.port}"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "forever abc"}], "stream": True}
    bearer = {"authorization": "Bearer dip-a-long-key"}
    health = httpx.get(f"{url}/health", verify=trusting).json()
    with (
        httpx.Client(verify=trusting, http1=not http2, http2=http2, headers=bearer) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        read = answer.iter_raw()
        assert sum(len(next(read)) for _ in range(50)) > 50
    until = time.monotonic() + 20
    while time.monotonic() < until:
        now = httpx.get(f"{url}/health", verify=trusting).json()
        if now["ended"]["cancelled"] == health["ended"]["cancelled"] + 1:
            return
        time.sleep(0.05)
    pytest.fail("the request goes on after its client has left")


def test_a_big_body_comes_through(secure: GatewayProcess) -> None:
    bearer = {"authorization": "Bearer dip-a-long-key"}
    plain = f"http://127.0.0.1:{secure.port}"
    body = b'{"messages":[{"role":"user","content":[{"text":"' + b"x" * 20_000_000 + b'"}]}]}'
    answer = httpx.post(f"{plain}/model/tiny/converse", content=body, headers=bearer, timeout=60)
    assert answer.status_code == 400
    assert "Input is too long" in answer.json()["message"]


def test_boto3_sends_a_bearer_token(secure: GatewayProcess, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "dip-a-long-key")
    client = boto3.client(
        "bedrock-runtime", endpoint_url=secure.url, region_name="us-east-1", verify=str(folder / "ca.pem")
    )
    messages = [{"role": "user", "content": [{"text": "say hi"}]}]
    assert client.converse(modelId="tiny", messages=messages)["stopReason"] == "end_turn"
    client.close()


def test_the_certificate_has_awss_names_and_is_kept(tmp_path: Path) -> None:
    made = certificates(tmp_path, "0.0.0.0", "eu-west-1")
    names = x509.load_pem_x509_certificate(made.cert.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert set(aws_names("eu-west-1")) <= set(names.value.get_values_for_type(x509.DNSName))
    assert made.key.stat().st_mode & 0o077 == 0
    before = made.cert.read_bytes()
    assert certificates(tmp_path, "127.0.0.1", "eu-west-1").cert.read_bytes() == before
    assert certificates(tmp_path, "127.0.0.1", "us-west-2").cert.read_bytes() != before
    assert str(made.ca) in made.hint()
