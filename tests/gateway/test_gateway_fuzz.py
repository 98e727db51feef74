"""Mutated requests: an answer or a 4xx in the dialect's own shape, never a 5xx, and nothing keeps running."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.gateway.app import build_app
from support.scripted import ScriptedService

LLAMA, NOVA = "meta.llama3-1-8b-instruct-v1:0", "amazon.nova-micro-v1:0"
TOOL = {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}
TALK = [
    {"role": "user", "content": [{"text": "say hi"}]},
    {"role": "assistant", "content": [{"text": "a"}, {"toolUse": {"toolUseId": "t", "name": "f", "input": {}}}]},
    {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"json": {"a": 1}}]}}]},
]
CONVERSE = {
    "messages": TALK,
    "system": [{"text": "s"}],
    "inferenceConfig": {"maxTokens": 20, "temperature": 0.5, "topP": 0.5, "stopSequences": ["zz"]},
    "toolConfig": {"tools": [{"toolSpec": TOOL}], "toolChoice": {"auto": {}}},
    "additionalModelRequestFields": {"top_k": 4},
    "additionalModelResponseFieldPaths": ["/stop_sequence"],
    "performanceConfig": {"latency": "standard"},
    "requestMetadata": {"a": "b"},
}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
CHAT = {
    "model": "tiny",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "say hi"}]},
        {
            "role": "assistant",
            "content": "a",
            "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "t", "content": "x"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "stop": ["zz"],
    "n": 2,
    "seed": 3,
    "logprobs": True,
    "top_logprobs": 2,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
}
BODIES: dict[str, Any] = {
    "/model/tiny/converse": CONVERSE,
    "/model/tiny/converse-stream": CONVERSE,
    f"/model/{LLAMA}/invoke": {"prompt": "say hi", "max_gen_len": 9, "temperature": 0.5, "top_p": 0.5},
    f"/model/{NOVA}/invoke-with-response-stream": {
        "messages": TALK[:1],
        "inferenceConfig": {"maxTokens": 9, "topK": 3},
    },
    "/model/tiny/invoke": {**CHAT, "n": 1, "stream": False, "stream_options": None},
    "/model/tiny/count-tokens": {"input": {"converse": {"messages": TALK[:1]}}},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": ["say hi"], "max_tokens": 5, "logprobs": 1, "stream": True},
    "/v1/responses": {
        "model": "tiny",
        "input": [{"role": "user", "content": "say hi"}, {"type": "function_call", "call_id": "c", "name": "f"}],
        "tools": [{"type": "function", **FUNCTION}],
        "text": {"format": {"type": "json_object"}},
        "stream": True,
    },
    "/anthropic/v1/messages": {
        "model": "tiny",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "say hi"}]}],
        "tools": [{"name": "f", "input_schema": {}}],
        "stream": True,
    },
}
NUMBERS = st.integers(-5, 5) | st.sampled_from([2**31, 2**63, 2**70, -(2**70), 1e308, -0.0])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.sampled_from(["say x", "raise Overloaded"])
VALUES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value but the root."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, item in inner for place in ((*path, key), *places(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, body: Any) -> Any:
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        here = draw(st.sampled_from(places(body) or [()]))
        if not here:
            return body
        holder = body
        for key in here[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[here[-1]] = draw(VALUES)
        else:
            del holder[here[-1]]
    return body


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_request_is_a_server_error(path: str, data: st.DataObject) -> None:
    body = data.draw(mutated(BODIES[path]))
    service = ScriptedService()
    app = build_app(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.post(path, content=msgspec.json.encode(body))
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        found = answer.json()
        message = found["message"] if path.startswith("/model") else found["error"]["message"]
        assert len(message) > 5
    assert service.running == 0
    assert len(app.gateway.in_flight) == 0


@pytest.mark.parametrize("path", BODIES)
async def test_the_unmutated_request_is_served(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=BODIES[path])
    assert answer.status_code == 200, answer.text
