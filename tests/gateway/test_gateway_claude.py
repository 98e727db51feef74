"""Claude's native body, as ``anthropic[bedrock]`` and boto3 send it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from botocore.exceptions import ClientError

from support.process import GatewayProcess

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"


@pytest.fixture
def claude(gateway: GatewayProcess) -> Iterator[anthropic.AnthropicBedrock]:
    with anthropic.AnthropicBedrock(
        base_url=gateway.url, aws_access_key="a", aws_secret_key="b", aws_region="us-east-1", max_retries=0
    ) as client:
        yield client


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": CLAUDE, "max_tokens": 50, "messages": [{"role": "user", "content": text}], **more}


def test_whole(claude: Any) -> None:
    message = claude.messages.create(**asked("say Hello."))
    assert (message.content[0].text, message.stop_reason, message.role) == ("Hello.", "end_turn", "assistant")
    assert message.usage.output_tokens > 0
    assert claude.messages.create(**asked("say abcdef", max_tokens=2)).stop_reason == "max_tokens"


def test_streamed(claude: Any) -> None:
    with claude.messages.stream(**asked("say one\nsay  two", stop_sequences=["wo"])) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == "one t"
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "wo")


def test_tools(claude: Any) -> None:
    tools = [{"name": "now", "input_schema": {"type": "object"}}]
    script = 'say <tool_call>{"name": "now", "arguments": {"tz": "UTC"}}</tool_call>'
    (use,) = claude.messages.create(**asked(script, tools=tools, max_tokens=500)).content
    assert (use.type, use.name, use.input) == ("tool_use", "now", {"tz": "UTC"})


def test_errors_are_bedrocks(claude: Any, bedrock: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(**asked("x", extra_body={"temperature": 3}))
    with pytest.raises(anthropic.BadRequestError, match="identifier is invalid"):
        claude.messages.create(**{**asked("x"), "model": "anthropic.nope"})
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "say x"}]}
    for wrong in ({}, {"anthropic_version": "yesterday"}, {"anthropic_version": "bedrock-2023-05-31", "stream": True}):
        with pytest.raises(ClientError) as caught:
            bedrock.invoke_model(modelId=CLAUDE, body=json.dumps({**body, **wrong}))
        assert caught.value.response["Error"]["Code"] == "ValidationException"
    answer = bedrock.invoke_model(modelId=CLAUDE, body=json.dumps({**body, "anthropic_version": "bedrock-2023-05-31"}))
    assert json.loads(answer["body"].read())["content"] == [{"type": "text", "text": "x"}]
