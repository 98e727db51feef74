from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest

from support.process import GatewayProcess
from support.scripted import ScriptedService

TOOLS: Any = [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
CALL = 'say Let me look. <tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


@pytest.fixture(scope="module", params=["", "/anthropic"])
def claude(gateway: GatewayProcess, request: pytest.FixtureRequest) -> Any:
    with anthropic.Anthropic(base_url=gateway.url + request.param, api_key="any", max_retries=0) as client:
        yield client


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": text}], **more}


def test_a_message(claude: Any) -> None:
    made = claude.messages.create(**ask("say the wörld", system="Be brief."))
    assert (made.content[0].text, made.stop_reason) == ("the wörld", "end_turn")
    assert made.usage.output_tokens > 0
    assert made._request_id
    cut = claude.messages.create(**ask("forever ab", max_tokens=3))
    assert (cut.content[0].text, cut.stop_reason) == ("aba", "max_tokens")
    stopped = claude.messages.create(**ask("forever ab", stop_sequences=["ba"]))
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == ("a", "stop_sequence", "ba")


def test_a_streamed_message(claude: Any) -> None:
    with claude.messages.stream(**ask("say abc")) as stream:
        assert "".join(stream.text_stream) == "abc"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_answer(claude: Any, stream: bool) -> None:
    if stream:
        with claude.messages.stream(**ask(CALL, tools=TOOLS)) as events:
            made = events.get_final_message()
    else:
        made = claude.messages.create(**ask(CALL, tools=TOOLS))
    text, call = made.content
    assert text.text == "Let me look."
    assert (call.type, call.name, call.input, made.stop_reason) == ("tool_use", "weather", {"city": "Bern"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    history = [
        {"role": "user", "content": CALL},
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in made.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "say so"}]},
    ]
    again = claude.messages.create(model="tiny", max_tokens=50, messages=history, tools=TOOLS)
    assert again.content[0].text == "so"


@pytest.mark.parametrize(
    ("script", "kind"),
    [("raise Overloaded", anthropic.RateLimitError), ("raise EngineError", anthropic.InternalServerError)],
)
def test_errors(claude: Any, script: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        claude.messages.create(**ask(script))
    with pytest.raises(anthropic.APIError), claude.messages.stream(**ask(f"say a\n{script}")) as stream:
        list(stream)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"max_tokens": 0}, 400),
        ({"model": "nope"}, 404),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400),
        ({"temperature": 2}, 400),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400),
        ({"tool_choice": {"type": "tool", "name": "x"}}, 400),
        ({"unknown": 1}, 400),
    ],
)
async def test_refused(
    client: httpx.AsyncClient, service: ScriptedService, change: dict[str, Any], status: int
) -> None:
    answer = await client.post("/v1/messages", json={**ask("x"), **change})
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["message"]
    assert service.requests == []


async def test_a_choice_becomes_a_schema(client: httpx.AsyncClient, service: ScriptedService) -> None:
    await client.post("/v1/messages", json=ask("x", tools=TOOLS, tool_choice={"type": "any"}))
    assert '"const":"weather"' in (service.requests[0].sampling.json_schema or "")
