"""Tool use with real clients, and the prompt that the model gets."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from diptych.gateway.app import build_app
from support.chat import ChatML
from support.scripted import ScriptedModel, ScriptedService

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BEDROCK_TOOLS = {"tools": [{"toolSpec": {"name": "weather", "description": "d", "inputSchema": {"json": SCHEMA}}}]}
OPENAI_TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}]
CALL = 'say Let me look. <tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>'


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": b} if isinstance(b, str) else b for b in blocks]}


def test_converse_calls_a_tool(bedrock: Any) -> None:
    answer = bedrock.converse(modelId="tiny", messages=[user(CALL)], toolConfig=BEDROCK_TOOLS)
    text, use = answer["output"]["message"]["content"]
    assert text == {"text": "Let me look."}
    assert use["toolUse"]["name"] == "weather"
    assert use["toolUse"]["input"] == {"city": "Zürich"}
    assert use["toolUse"]["toolUseId"].startswith("tooluse_")
    assert answer["stopReason"] == "tool_use"
    result = {"toolResult": {"toolUseId": use["toolUse"]["toolUseId"], "content": [{"json": {"sky": "blue"}}]}}
    again = bedrock.converse(
        modelId="tiny",
        messages=[user(CALL), answer["output"]["message"], user(result, "say blue")],
        toolConfig=BEDROCK_TOOLS,
    )
    assert again["stopReason"] == "end_turn"


def test_converse_streams_a_call(bedrock: Any) -> None:
    response = bedrock.converse_stream(modelId="tiny", messages=[user(CALL)], toolConfig=BEDROCK_TOOLS)
    events = list(response["stream"])
    response["stream"].close()
    start = next(event["contentBlockStart"] for event in events if "contentBlockStart" in event)
    assert start["contentBlockIndex"] == 1
    assert start["start"]["toolUse"]["name"] == "weather"
    deltas = [event["contentBlockDelta"] for event in events if "contentBlockDelta" in event]
    pieces = [delta["delta"]["toolUse"]["input"] for delta in deltas if delta["contentBlockIndex"] == 1]
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == {"city": "Zürich"}
    assert [event["contentBlockStop"]["contentBlockIndex"] for event in events if "contentBlockStop" in event] == [0, 1]
    assert {"messageStop": {"stopReason": "tool_use"}} in events


def test_chat_calls_a_tool(chat: Any) -> None:
    answer = chat.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": CALL}], tools=OPENAI_TOOLS
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Zürich"})
    history = [
        {"role": "user", "content": CALL},
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "blue"},
    ]
    assert chat.chat.completions.create(model="tiny", messages=history, tools=OPENAI_TOOLS).choices


def test_chat_streams_a_call(chat: Any) -> None:
    with chat.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": CALL}], tools=OPENAI_TOOLS
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (call,) = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    assert final.choices[0].message.content == "Let me look."


@pytest.fixture
def calls() -> list[dict[str, Any]]:
    return [{"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Bern"}}}]


async def test_the_prompt_describes_tools_and_spells_out_calls(
    client: httpx.AsyncClient, service: ScriptedService, calls: list[dict[str, Any]]
) -> None:
    result = {"toolResult": {"toolUseId": "t1", "content": [{"text": "rain"}]}}
    body = {
        "system": [{"text": "Be brief."}],
        "messages": [user("hi"), {"role": "assistant", "content": calls}, user(result)],
        "toolConfig": BEDROCK_TOOLS,
    }
    assert (await client.post("/model/tiny/converse", json=body)).status_code == 200
    prompt = ChatML().text(service.requests[0].prompt)
    assert "Be brief.\n\n# Tools" in prompt
    assert '{"type":"function","function":{"name":"weather","description":"d"' in prompt
    assert '<tool_call>\n{"name":"weather","arguments":{"city":"Bern"}}\n</tool_call>' in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt


class NativeChat(ChatML):
    """A template that knows tools."""

    def prompt_tokens(self, messages: Any, tools: Any = None) -> tuple[int, ...]:
        return self.encode(json.dumps([messages, tools]))


async def test_a_template_that_knows_tools_gets_them(calls: list[dict[str, Any]]) -> None:
    service = ScriptedService([ScriptedModel("native", NativeChat())])
    result = {"toolResult": {"toolUseId": "t1", "content": [{"text": "rain"}]}}
    body = {
        "messages": [user("hi"), {"role": "assistant", "content": calls}, user(result)],
        "toolConfig": BEDROCK_TOOLS,
    }
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(build_app(service)), base_url="http://gateway"
    ) as client:
        answer = await client.post("/model/native/converse", json=body)
    assert answer.status_code == 200, answer.text
    messages, tools = json.loads(ChatML().text(service.requests[0].prompt))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bern"}}
    assert tools[0]["function"]["parameters"] == SCHEMA


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"any": {}}, ["weather", "time"]), ({"tool": {"name": "time"}}, ["time"]), ({"auto": {}}, [])],
)
async def test_a_choice_becomes_a_schema(
    client: httpx.AsyncClient, service: ScriptedService, choice: dict[str, Any], names: list[str]
) -> None:
    tools = [{"toolSpec": {"name": name, "inputSchema": {"json": SCHEMA}}} for name in ("weather", "time")]
    body = {"messages": [user("hi")], "toolConfig": {"tools": tools, "toolChoice": choice}}
    assert (await client.post("/model/tiny/converse", json=body)).status_code == 200
    schema = service.requests[0].sampling.json_schema
    found = json.loads(schema) if schema else {"anyOf": []}
    assert [call["properties"]["name"]["const"] for call in found.get("anyOf", [found])] == names


BAD = {
    "no tools": ({"toolConfig": {"tools": []}}, "length greater than or equal to 1"),
    "a bad name": (
        {"toolConfig": {"tools": [{"toolSpec": {"name": "a b", "inputSchema": {"json": {}}}}]}},
        "failed to satisfy constraint",
    ),
    "an unknown choice": (
        {"toolConfig": {**BEDROCK_TOOLS, "toolChoice": {"tool": {"name": "x"}}}},
        "not among toolConfig.tools",
    ),
    "a result nobody asked for": (
        {
            "toolConfig": BEDROCK_TOOLS,
            "messages": [user({"toolResult": {"toolUseId": "t", "content": []}})],
        },
        "exceeds the number of toolUse blocks of previous turn",
    ),
    "a call not answered": (
        {
            "toolConfig": BEDROCK_TOOLS,
            "messages": [
                user("a"),
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t9", "name": "weather", "input": {}}}]},
                user("b"),
            ],
        },
        "Expected toolResult blocks at messages.2.content for the following Ids: t9",
    ),
    "a result without toolConfig": (
        {"messages": [user({"toolResult": {"toolUseId": "t", "content": []}})]},
        "toolConfig field must be defined",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_bedrock_refuses(client: httpx.AsyncClient, case: str) -> None:
    body, words = BAD[case]
    answer = await client.post("/model/tiny/converse", json={"messages": [user("hi")], **body})
    assert answer.status_code == 400
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": OPENAI_TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ],
)
async def test_openai_refuses(client: httpx.AsyncClient, change: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **change}
    answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("choice", [{}, {"auto": {}, "any": {}}, {"any": {}, "tool": {"name": "f"}}])
async def test_a_choice_is_exactly_one(client: httpx.AsyncClient, choice: dict[str, Any]) -> None:
    tool = {"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}
    body = {"messages": [{"role": "user", "content": [{"text": "say hi"}]}]}
    answer = await client.post(
        "/model/tiny/converse", json={**body, "toolConfig": {"tools": [tool], "toolChoice": choice}}
    )
    assert answer.status_code == 400
    assert "exactly one" in answer.json()["message"]
