"""Every bad request is a 4xx in its dialect's own shape, says what to change, and leaves nothing running."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from diptych.gateway.app import build_app
from diptych.gateway.intake import Limits
from support.scripted import ScriptedService

CONVERSE = "/model/tiny/converse"
STREAM = "/model/tiny/converse-stream"
CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object"}
USER = {"role": "user", "content": [{"text": "say x"}]}
ASSISTANT = {"role": "assistant", "content": [{"text": "x"}]}


def converse(**changes: Any) -> dict[str, Any]:
    return {"messages": [USER], **changes}


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "say x"}], **changes}


BEDROCK_CASES = {
    "no messages": (converse(messages=[]), "must start with a user message"),
    "messages missing": ({}, "must start with a user message"),
    "messages no list": (converse(messages="hi"), "Expected `array`, got `str` - at `$.messages`"),
    "assistant first": (converse(messages=[ASSISTANT, USER]), "must start with a user message"),
    "not alternating": (converse(messages=[USER, USER]), "must alternate between user and assistant"),
    "ends with assistant": (converse(messages=[USER, ASSISTANT]), "must end with a user message"),
    "no content": (converse(messages=[{"role": "user", "content": []}]), "messages.0 is empty"),
    "blank text": (converse(messages=[{"role": "user", "content": [{"text": " "}]}]), "is blank"),
    "empty block": (converse(messages=[{"role": "user", "content": [{}]}]), "exactly one member"),
    "two in a block": (
        converse(messages=[{"role": "user", "content": [{"text": "a", "cachePoint": {"type": "default"}}]}]),
        "exactly one member",
    ),
    "unknown role": (converse(messages=[{"role": "robot", "content": []}]), "Invalid enum value 'robot'"),
    "image": (
        converse(messages=[{"role": "user", "content": [{"image": {"format": "png", "source": {}}}]}]),
        "doesn't support the image content block at messages.0.content.0",
    ),
    "document": (
        converse(messages=[{"role": "user", "content": [{"document": {}}]}]),
        "doesn't support the document content block",
    ),
    "maxTokens 0": (
        converse(inferenceConfig={"maxTokens": 0}),
        "Value '0' at 'inferenceConfig.maxTokens' failed to satisfy constraint: Member must have value",
    ),
    "negative temperature": (converse(inferenceConfig={"temperature": -1}), "greater than or equal to 0"),
    "high temperature": (converse(inferenceConfig={"temperature": 1.5}), "less than or equal to 1"),
    "topP": (converse(inferenceConfig={"topP": 1.01}), "'inferenceConfig.topP'"),
    "empty stop": (converse(inferenceConfig={"stopSequences": ["a", ""]}), "stopSequences.2.member"),
    "wrong type": (converse(inferenceConfig={"maxTokens": "3"}), "Expected `int | null`, got `str`"),
    "unknown field": (converse(inferenceConfig={"max_tokens": 3}), "unknown field `max_tokens`"),
    "unknown model field": (converse(additionalModelRequestFields={"beam": 3}), "unknown field `beam`"),
    "top_k": (converse(additionalModelRequestFields={"top_k": -1}), "top_k"),
    "pointer": (converse(additionalModelResponseFieldPaths=["stop"]), "JSON Pointer"),
    "latency": (converse(performanceConfig={"latency": "fast"}), "Invalid enum value 'fast'"),
    "tier": (converse(serviceTier={"type": "gold"}), "Invalid enum value 'gold'"),
    "guardrail": (converse(guardrailConfig={"guardrailIdentifier": "g"}), "guardrail identifier or version"),
    "prompt variables": (converse(promptVariables={}), "ARN of a prompt"),
    "schema": (
        converse(outputConfig={"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{"}}}}),
        "must be a JSON object as a string",
    ),
    "too long": (
        converse(messages=[{"role": "user", "content": [{"text": "x" * 5000}]}]),
        "Input is too long",
    ),
    "far too long": (
        converse(messages=[{"role": "user", "content": [{"text": "x" * 3_000_000}]}]),
        "maximum context length is 4096 tokens",
    ),
    "surrogate": (b'{"messages":[{"role":"user","content":[{"text":"\\ud800"}]}]}', "surrogate"),
    "invalid UTF-8": (b'{"messages":[{"role":"user","content":[{"text":"\xff"}]}]}', "UTF-8"),
    "invalid JSON": (b'{"messages":', "not valid JSON"),
    "empty body": (b"", "body is empty"),
    "an array": (b"[]", "Expected `object`, got `array`"),
    "nested": (
        b'{"additionalModelRequestFields":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        "nested too deeply",
    ),
}

OPENAI_CASES = {
    "model missing": ({"messages": []}, "model", "'model' is missing"),
    "no messages": (chat(messages=[]), "messages", "'messages' is empty"),
    "messages missing": ({"model": "tiny"}, "messages", "'messages' is empty"),
    "unknown role": (chat(messages=[{"role": "robot", "content": "x"}]), None, "Invalid enum value"),
    "no content": (chat(messages=[{"role": "user"}]), "messages[0]", "has no content"),
    "image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]),
        "messages[0].content[0]",
        "has the type 'image_url'",
    ),
    "max_tokens 0": (chat(max_tokens=0), "max_tokens", "'max_tokens' is 0; it must be at least 1."),
    "max_completion_tokens": (chat(max_completion_tokens=-1), "max_completion_tokens", "at least 1"),
    "negative temperature": (chat(temperature=-0.1), "temperature", "between 0 and 2"),
    "high temperature": (chat(temperature=2.1), "temperature", "between 0 and 2"),
    "top_p": (chat(top_p=2), "top_p", "between 0 and 1"),
    "n": (chat(n=0), "n", "between 1 and 16"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs", "needs 'logprobs'"),
    "top_logprobs": (chat(logprobs=True, top_logprobs=21), "top_logprobs", "between 0 and 20"),
    "stream_options alone": (chat(stream_options={}), "stream_options", "needs 'stream'"),
    "five stops": (chat(stop=["a"] * 5), "stop", "at most 4"),
    "empty stop": (chat(stop=""), "stop", "empty sequence"),
    "logit_bias": (chat(logit_bias={"1": 5}), "logit_bias", "not supported"),
    "unknown field": (chat(temprature=1), None, "unknown field `temprature`"),
    "wrong type": (chat(temperature="warm"), None, "Expected `float | null`, got `str`"),
    "schema": (chat(response_format={"type": "json_schema"}), "response_format", "needs 'json_schema'"),
    "too long": (chat(messages=[{"role": "user", "content": "x" * 5000}]), None, "Shorten the prompt"),
    "invalid JSON": (b"{'model'}", None, "not valid JSON"),
    "invalid UTF-8": (b'{"model":"\xff"}', None, "UTF-8"),
    "surrogate": (b'{"model":"tiny","messages":[{"role":"user","content":"\\udc00"}]}', None, "surrogate"),
}


def encoded(body: bytes | dict[str, Any]) -> bytes:
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


@pytest.mark.parametrize("path", [CONVERSE, STREAM])
@pytest.mark.parametrize("case", BEDROCK_CASES)
async def test_bedrock_refuses(client: httpx.AsyncClient, service: ScriptedService, path: str, case: str) -> None:
    body, words = BEDROCK_CASES[case]
    answer = await client.post(path, content=encoded(body))
    assert answer.status_code == 400, answer.text
    assert answer.headers["x-amzn-errortype"].startswith("ValidationException:")
    assert answer.headers["x-amzn-requestid"]
    assert list(answer.json()) == ["message"]
    assert words in answer.json()["message"]
    assert service.requests == []


@pytest.mark.parametrize("case", OPENAI_CASES)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_refuses(client: httpx.AsyncClient, service: ScriptedService, case: str, stream: bool) -> None:
    body, param, words = OPENAI_CASES[case]
    if stream and isinstance(body, dict) and "stream_options" not in body:
        body = {**body, "stream": True}
    answer = await client.post(CHAT, content=encoded(body))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert answer.headers["x-request-id"]
    assert service.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", CHAT, 405),
        ("POST", "/model/tiny/sing", 404),
        ("GET", CONVERSE, 405),
        ("GET", "/diptych/requests/unknown", 404),
        ("GET", "/diptych/requests?limit=0", 400),
        ("GET", "/diptych/requests?limit=many", 400),
        ("GET", "/v1/models/nope", 404),
        ("POST", "/model//converse", 400),
    ],
)
async def test_paths_and_methods(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path, content=b"{}")
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == answer.headers["x-amzn-requestid"]
    assert answer.json().get("message") or answer.json()["error"]["message"]


async def test_a_body_over_the_limit_is_refused_whether_declared_or_not(service: ScriptedService) -> None:
    app = build_app(service, Limits(body_bytes=1000))
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 100
            yield b"x" * 100

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for content in (b"x" * 1001, endless()):
            answer = await client.post(CONVERSE, content=content)
            assert answer.status_code == 400
            assert "over the limit of 1000 bytes" in answer.json()["message"]
        answer = await client.post(CHAT, content=b"x" * 1001)
        assert answer.status_code == 413
    assert read <= 1200


async def test_max_tokens_beyond_the_room_is_cut_to_it(client: httpx.AsyncClient, service: ScriptedService) -> None:
    await client.post(CHAT, json=chat(max_tokens=1_000_000))
    (request,) = service.requests
    assert request.sampling.max_tokens == 4096 - len(request.prompt)


async def test_fields_reach_the_service(client: httpx.AsyncClient, service: ScriptedService) -> None:
    await client.post(
        CONVERSE,
        json=converse(
            inferenceConfig={"maxTokens": 9, "temperature": 0, "topP": 0.5, "stopSequences": ["#"]},
            additionalModelRequestFields={"top_k": 3, "min_p": 0.1, "seed": 7, "ignore_eos": True},
            performanceConfig={"latency": "optimized"},
            requestMetadata={"team": "blue"},
            outputConfig={
                "textFormat": {
                    "type": "json_schema",
                    "structure": {"jsonSchema": {"schema": '{"type":"object"}'}},
                }
            },
            system=[{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
        ),
    )
    await client.post(
        CHAT,
        json=chat(
            max_completion_tokens=9, temperature=0, top_p=0.5, stop="#", seed=7, ignore_eos=True, top_k=3,
            min_p=0.1, presence_penalty=0.25, service_tier="priority", user="me",
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        ),
    )  # fmt: skip
    for request in service.requests:
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (
            9,
            0,
            0.5,
            ("#",),
        )
        assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.ignore_eos) == (3, 0.1, 7, True)
        assert sampling.json_schema == '{"type":"object"}'
        assert request.latency == "optimized"
    assert service.requests[1].sampling.presence_penalty == 0.25


@pytest.mark.parametrize("number", ["9" * 5000, "²", "-1", "1e3", ""])
@pytest.mark.parametrize(
    "path", ["/guardrails?maxResults=", "/inference-profiles?nextToken=", "/diptych/requests?limit="]
)
async def test_an_odd_number_in_a_query_is_refused(client: httpx.AsyncClient, path: str, number: str) -> None:
    answer = await client.get(path + number)
    assert answer.status_code == 400


async def test_a_counted_body_that_is_not_base64_is_refused(client: httpx.AsyncClient) -> None:
    for body in ("é", "a", "%"):
        answer = await client.post("/model/tiny/count-tokens", json={"input": {"invokeModel": {"body": body}}})
        assert answer.status_code == 400
        assert "not valid Base64" in answer.json()["message"]
