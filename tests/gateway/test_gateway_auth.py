"""Signatures made by botocore are accepted, and nothing else is."""

from __future__ import annotations

import random
import string
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import openai
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from diptych.errors import ConfigError
from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys, sigv4
from diptych.gateway.auth.keys import check_exposure, digest
from support.process import GatewayProcess
from support.scripted import ScriptedService

ID, SECRET, API_KEY = "AKIDDIPTYCH", "s3cr3t/+key", "dip-a-long-key"
KEYS = (
    Key(name="signer", access_key_id=ID, secret_access_key=SECRET),
    Key(name="bearer", api_key_sha256=digest(API_KEY)),
    Key(name="narrow", api_key_sha256=digest("narrow"), models=("short",)),
)
BODY = b'{"messages":[{"role":"user","content":[{"text":"say hi"}]}]}'
CONVERSE = "/model/tiny/converse"


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = build_app(ScriptedService(), keys=Keys(KEYS))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


def sign(method: str, url: str, body: bytes, headers: dict[str, str], service: str = "bedrock") -> dict[str, str]:
    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    SigV4Auth(Credentials(ID, SECRET), service, "us-east-1").add_auth(request)
    return dict(request.headers)


async def converse(client: httpx.AsyncClient, headers: dict[str, str], body: bytes = BODY) -> httpx.Response:
    return await client.post(CONVERSE, content=body, headers=headers)


async def test_a_signature_is_accepted(client: httpx.AsyncClient) -> None:
    for service in ("bedrock", "bedrock-mantle"):
        headers = sign("POST", f"http://gateway{CONVERSE}", BODY, {"content-type": "application/json"}, service)
        assert (await converse(client, headers)).status_code == 200


async def test_a_thousand_random_requests_and_every_changed_one(client: httpx.AsyncClient) -> None:
    draw = random.Random(7)
    letters = string.ascii_letters + string.digits + " :/~._-%+é"
    for _ in range(1000):
        model = quote("m" + "".join(draw.choices(letters, k=draw.randint(1, 12))), safe="")
        path = f"/model/{model}/count-tokens"
        query = "&".join(f"k{n}={quote(draw.choice(letters), safe='')}" for n in range(draw.randint(0, 3)))
        body = draw.randbytes(draw.randint(0, 40))
        extra = {"x-amz-meta": " ".join(draw.choices(("a", "b  c", "d"), k=2)), "accept": "*/*"}
        url = f"http://gateway{path}" + (f"?{query}" if query else "")
        headers = sign("POST", url, body, extra)
        answer = await client.post(url, content=body, headers=headers)
        assert answer.status_code == 400, answer.text  # an unknown model or a malformed body: past the guard
        assert answer.headers["x-amzn-errortype"].startswith("ValidationException")
        signature = headers["Authorization"]
        at = draw.randrange(len(signature) - 64, len(signature))
        flipped = signature[:at] + ("0" if signature[at] != "0" else "1") + signature[at + 1 :]
        answer = await client.post(url, content=body, headers={**headers, "Authorization": flipped})
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "change",
    [
        {"body": BODY + b" "},
        {"path": "/model/short/converse"},
        {"path": f"{CONVERSE}?a=b"},
        {"header": ("content-type", "text/plain")},
        {"header": ("x-amz-date", "20260101T000000Z")},
        {"header": ("x-amz-content-sha256", "0" * 64)},
        {"header": ("host", "elsewhere")},
    ],
)
async def test_a_changed_request_is_refused(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    headers = sign("POST", f"http://gateway{CONVERSE}", BODY, {"content-type": "application/json"})
    headers = {name.lower(): value for name, value in headers.items()}
    if "header" in change:
        name, value = change["header"]
        headers[name] = value
    answer = await client.post(change.get("path", CONVERSE), content=change.get("body", BODY), headers=headers)
    assert answer.status_code == 403
    assert answer.headers["x-amzn-errortype"].startswith("InvalidSignatureException")


async def test_authority_stands_for_host(client: httpx.AsyncClient) -> None:
    amz_date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    claim = sigv4.Claim(ID, amz_date[:8], "us-east-1", "bedrock", (":authority", "x-amz-date"), "", amz_date)
    request = AWSRequest(method="POST", url=f"http://gateway{CONVERSE}", data=BODY)
    request.context["timestamp"] = amz_date
    signer = SigV4Auth(Credentials(ID, SECRET), "bedrock", "us-east-1")
    headers = {"host": "gateway", "x-amz-date": amz_date}
    body_hash = signer.payload(request)
    canonical = sigv4.canonical_request(claim, sigv4.Signed("POST", CONVERSE, [], headers, body_hash))
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    sent = {
        "x-amz-date": amz_date,
        "authorization": f"AWS4-HMAC-SHA256 Credential={ID}/{claim.scope}, "
        f"SignedHeaders=:authority;x-amz-date, Signature={signature}",
    }
    assert (await converse(client, sent)).status_code == 200


@pytest.mark.parametrize("minutes", [-6, 6, -600])
async def test_a_signature_of_another_time_is_refused(
    client: httpx.AsyncClient, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = datetime.now(UTC) + timedelta(minutes=minutes)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: shifted)
    answer = await converse(client, sign("POST", f"http://gateway{CONVERSE}", BODY, {}))
    assert answer.status_code == 403
    assert "Signature expired" in answer.text or "not yet current" in answer.text


async def test_a_presigned_url(client: httpx.AsyncClient) -> None:
    request = AWSRequest(method="GET", url="http://gateway/foundation-models", params={"byProvider": "meta"})
    SigV4QueryAuth(Credentials(ID, SECRET), "bedrock", "us-east-1", expires=60).add_auth(request)
    assert (await client.get(request.url)).status_code == 200
    assert (await client.get(request.url.replace("meta", "beta"))).status_code == 403


def short_term(secret: str = SECRET) -> str:
    request = AWSRequest(
        method="POST", url="https://bedrock.amazonaws.com/", headers={"host": "bedrock.amazonaws.com"},
        params={"Action": "CallWithBearerToken"},
    )  # fmt: skip
    SigV4QueryAuth(Credentials(ID, secret), "bedrock", "us-east-1", expires=43200).add_auth(request)
    url = request.url.removeprefix("https://") + "&Version=1"
    return "bedrock-api-key-" + b64encode(url.encode()).decode()


@pytest.mark.parametrize(
    ("token", "status"),
    [
        (API_KEY, 200),
        (short_term(), 200),
        (short_term("another secret"), 403),
        (short_term()[:-8] + "AAAAAAA=", 403),
        ("bedrock-api-key-%%%", 403),
        ("dip-another-key", 403),
    ],
)
async def test_bearer_tokens(client: httpx.AsyncClient, token: str, status: int) -> None:
    assert (await converse(client, {"authorization": f"Bearer {token}"})).status_code == status


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("", 403, "MissingAuthenticationTokenException"),
        ("AWS4-HMAC-SHA256 Credential=x", 400, "IncompleteSignatureException"),
        ("Basic abc", 400, "IncompleteSignatureException"),
    ],
)
async def test_no_proof_at_all(client: httpx.AsyncClient, authorization: str, status: int, code: str) -> None:
    answer = await converse(client, {"authorization": authorization} if authorization else {})
    assert (answer.status_code, answer.headers["x-amzn-errortype"].split(":")[0]) == (status, code)


async def test_the_openai_dialect_says_401(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "say hi"}]}
    answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer nope"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await client.get("/diptych/requests")).status_code == 401
    assert (await client.get("/health")).status_code == 200


async def test_a_key_may_be_for_some_models_only(client: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer narrow"}
    answer = await converse(client, headers)
    assert answer.status_code == 403
    assert answer.json()["message"] == "You don't have access to the model with the specified model ID."
    assert (await client.post("/model/short/converse", content=BODY, headers=headers)).status_code == 200
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    assert (await client.post("/v1/chat/completions", json=chat, headers=headers)).status_code == 403


def test_keys_show_no_secret_and_must_be_whole() -> None:
    assert SECRET not in repr(KEYS)
    with pytest.raises(ConfigError, match="needs both"):
        Keys([Key(name="half", access_key_id="a")])
    with pytest.raises(ConfigError, match="needs api_key_sha256"):
        Keys([Key(name="none")])


@pytest.mark.parametrize(
    ("host", "keys", "open_to_all"),
    [
        ("127.0.0.1", (), False),
        ("::1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("0.0.0.0", KEYS, False),
    ],
)
def test_without_keys_only_this_machine_may_be_served(host: str, keys: Any, open_to_all: bool) -> None:
    if not open_to_all:
        check_exposure(host, Keys(keys))
        return
    with pytest.raises(ConfigError, match="needs a key"):
        check_exposure(host, Keys(keys))


@pytest.fixture(scope="module")
def guarded() -> Any:
    process = GatewayProcess(KEYS="1")
    yield process
    process.stop()


def test_boto3_and_openai_with_a_right_and_a_wrong_key(guarded: GatewayProcess) -> None:
    messages = [{"role": "user", "content": [{"text": "say hi"}]}]
    for secret, code in ((SECRET, None), ("wrong", "InvalidSignatureException")):
        client = boto3.client(
            "bedrock-runtime", endpoint_url=guarded.url, region_name="us-east-1", aws_access_key_id=ID,
            aws_secret_access_key=secret, config=Config(retries={"max_attempts": 1}),
        )  # fmt: skip
        arn = "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0"
        if code is None:
            assert client.converse(modelId=arn, messages=messages)["stopReason"] == "end_turn"
        else:
            with pytest.raises(ClientError) as caught:
                client.converse(modelId=arn, messages=messages)
            assert caught.value.response["Error"]["Code"] == code
        client.close()
    for token, status in ((API_KEY, 200), ("wrong", 401)):
        with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=token, max_retries=0) as client:
            if status == 200:
                assert client.models.list().data
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
