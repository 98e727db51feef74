from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from support.chat import ChatML
from support.scripted import ScriptedService

TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "description": "d"}]
CALL = 'say Let me look. <tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


def test_a_response(chat: Any) -> None:
    made = chat.responses.create(model="tiny", input="say the wörld", instructions="Be brief.")
    assert (made.output_text, made.status) == ("the wörld", "completed")
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.instructions == "Be brief."


def test_an_incomplete_response(chat: Any) -> None:
    made = chat.responses.create(model="tiny", input="forever a", max_output_tokens=5)
    assert (made.output_text, made.status) == ("aaaaa", "incomplete")
    assert made.incomplete_details.reason == "max_output_tokens"


def test_a_streamed_response(chat: Any) -> None:
    with chat.responses.stream(model="tiny", input="say abc") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "abc"
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_answer(chat: Any, stream: bool) -> None:
    if stream:
        with chat.responses.stream(model="tiny", input=CALL, tools=TOOLS) as events:
            deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
            made = events.get_final_response()
        assert json.loads("".join(deltas)) == {"city": "Bern"}
    else:
        made = chat.responses.create(model="tiny", input=CALL, tools=TOOLS)
    message, call = made.output
    assert message.content[0].text == "Let me look."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Bern"})
    history = [
        {"role": "user", "content": CALL},
        message.model_dump(exclude_none=True),
        call.model_dump(exclude_none=True, exclude={"parsed_arguments"}),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        {"role": "user", "content": [{"type": "input_text", "text": "say so"}]},
    ]
    assert chat.responses.create(model="tiny", input=history, tools=TOOLS).output_text == "so"


async def test_calls_and_text_of_a_turn_are_one_message(client: httpx.AsyncClient, service: ScriptedService) -> None:
    history = [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "reasoning", "id": "r", "summary": []},
    ]
    body = {"model": "tiny", "input": history, "tools": TOOLS, "text": {"format": {"type": "json_object"}}}
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    prompt = ChatML().text(service.requests[0].prompt)
    assert (
        'assistant\nLooking.\n<tool_call>\n{"name":"weather","arguments":{"a":1}}\n</tool_call>\n<tool_call>' in prompt
    )
    assert service.requests[0].sampling.json_schema == '{"type":"object"}'


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "messages"),
        ({"input": [{"type": "image_generation_call"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"unknown": 1}, None),
    ],
)
async def test_refused(client: httpx.AsyncClient, change: dict[str, Any], param: str | None) -> None:
    answer = await client.post("/v1/responses", json={"model": "tiny", "input": "x", **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_error_within_a_stream(chat: Any) -> None:
    with pytest.raises(openai.APIError, match="the scripted EngineError"):
        list(chat.responses.create(model="tiny", input="say a\nraise EngineError", stream=True))
