"""A client of a running gateway, for the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import httpx
import msgspec

from diptych.errors import ConfigError
from diptych.types import RequestRecord

TIMEOUT = httpx.Timeout(10.0, read=300.0)


def ask(url: str, text: str, model: str | None, max_tokens: int, temperature: float) -> str:
    """Streams the answer to standard output and returns the request's id. Raises ConfigError."""
    with _client(url) as client:
        body = {
            "model": model or _first_model(client),
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
        }
        with _reaching(url), client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ConfigError(_refusal(answer.read()))
            for piece in _pieces(answer):
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n\n")
        return str(answer.headers["x-request-id"])


def record(url: str, request_id: str) -> RequestRecord:
    """The record of a request, or of the latest one. Raises ConfigError when there is none."""
    with _client(url) as client, _reaching(url):
        if request_id == "latest":
            answer = client.get("/diptych/requests", params={"limit": 1})
            found = msgspec.json.decode(answer.content, type=Records).requests
            if not found:
                raise ConfigError(f"the gateway at {url} has served no request yet")
            return found[0]
        answer = client.get(f"/diptych/requests/{request_id}")
        if answer.status_code != httpx.codes.OK:
            raise ConfigError(f"the gateway at {url} knows no request {request_id} (it keeps the latest 4,096)")
        return msgspec.json.decode(answer.content, type=RequestRecord)


class Records(msgspec.Struct):
    """The answer of ``GET /diptych/requests``."""

    requests: list[RequestRecord]


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=TIMEOUT)


class _reaching:  # noqa: N801  # used as a with statement
    """Says how to start a gateway where there is none."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.TransportError):
            raise ConfigError(f"no gateway answers at {self._url} ({error}); start one with `make serve`") from None


def _first_model(client: httpx.Client) -> str:
    with _reaching(str(client.base_url)):
        return str(client.get("/v1/models").json()["data"][0]["id"])


def _refusal(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _pieces(answer: httpx.Response) -> Iterator[str]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line[6:])
            if "error" in event:
                raise ConfigError(event["error"]["message"])
            for choice in event.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""
