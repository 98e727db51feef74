"""Requests made from our shapes of OpenAI's and Anthropic's APIs: an answer that their clients read, or a 4xx."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import anthropic.types
import httpx
import msgspec
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from diptych.gateway.anthropic.shapes import MessagesBody
from diptych.gateway.app import GatewayApp, build_app
from diptych.gateway.openai.responses_shapes import ResponsesBody
from diptych.gateway.openai.shapes import ChatBody, CompletionBody
from support.scripted import ScriptedService
from support.structs import of_type

SAID = st.sampled_from(["say hi", "cut", "together all at once", 'say <tool_call>{"name": "f", "arguments": {}}'])
TALK = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": SAID}), min_size=1, max_size=1)
NONE = st.none()


class Dialect(NamedTuple):
    """An operation: its shape, and the client's types of an answer and of an event."""

    path: str
    shape: type
    whole: Any
    event: Any
    overrides: dict[str, st.SearchStrategy[Any]]


DIALECTS = (
    Dialect(
        "/v1/chat/completions",
        ChatBody,
        openai.types.chat.ChatCompletion,
        openai.types.chat.ChatCompletionChunk,
        {"ChatBody.model": st.just("tiny"), "ChatBody.messages": TALK},
    ),
    Dialect(
        "/v1/completions",
        CompletionBody,
        openai.types.Completion,
        openai.types.Completion,
        {"CompletionBody.model": st.just("tiny"), "CompletionBody.prompt": SAID},
    ),
    Dialect(
        "/v1/responses",
        ResponsesBody,
        openai.types.responses.Response,
        openai.types.responses.ResponseStreamEvent,
        {"ResponsesBody.model": st.just("tiny"), "ResponsesBody.input": SAID},
    ),
    Dialect(
        "/anthropic/v1/messages",
        MessagesBody,
        anthropic.types.Message,
        anthropic.types.RawMessageStreamEvent,
        {
            "MessagesBody.model": st.just("tiny"),
            "MessagesBody.messages": TALK,
            "MessagesBody.max_tokens": st.integers(1, 30),
        },
    ),
)
"""What is drawn in place of a field: the messages, so that some requests are served."""


def thinned(body: dict[str, Any], draw: st.DrawFn, needed: set[str]) -> dict[str, Any]:
    """Few optional members: with all of them at once, one is always refused."""
    spare = [name for name in body if name not in needed]
    kept = draw(st.lists(st.sampled_from(spare), max_size=4, unique=True)) if spare else []
    return {name: value for name, value in body.items() if name in needed or name in kept}


@st.composite
def bodies(draw: st.DrawFn, dialect: Dialect) -> dict[str, Any]:
    wild = draw(st.integers(0, 3)) == 0
    body = draw(of_type(dialect.shape, {} if wild else dialect.overrides))
    needed = {name.partition(".")[2] for name in dialect.overrides}
    thin = thinned(body, draw, needed)
    return {**thin, "stream": draw(st.booleans())} if draw(st.booleans()) else thin


def read(dialect: Dialect, answer: httpx.Response) -> None:
    """The answer, and every event of a stream, by the client's own types."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        TypeAdapter(dialect.whole).validate_json(answer.content)
        return
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert events
    adapter = TypeAdapter(dialect.event)
    for event in events:
        if event != "[DONE]":
            found = msgspec.json.decode(event)
            assert "error" not in found, event
            if not _untyped(found):
                adapter.validate_json(event)


def _untyped(event: dict[str, Any]) -> bool:
    """What the services send and their clients' types leave out: pings, and completions that are not at their end."""
    ongoing = any(choice.get("finish_reason") is None for choice in event.get("choices", []))
    return event.get("type") == "ping" or (event.get("object") == "text_completion" and ongoing)


async def asked(app: GatewayApp, dialect: Dialect, body: dict[str, Any]) -> int:
    transport = httpx.ASGITransport(app)
    async with asyncio.timeout(60), httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        answer = await client.post(dialect.path, content=msgspec.json.encode(body))
    if answer.status_code == 200:
        read(dialect, answer)
        return 200
    assert 400 <= answer.status_code < 500, (body, answer.text)
    error = answer.json()["error"]
    assert len(error["message"]) > 5
    assert error["type"] in ("invalid_request_error", "not_found_error", "rate_limit_error"), error
    return answer.status_code


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.path)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_an_answer_is_what_the_client_reads(dialect: Dialect, data: st.DataObject) -> None:
    app = build_app(ScriptedService())
    await asked(app, dialect, data.draw(bodies(dialect)))
    assert len(app.gateway.in_flight) == 0
