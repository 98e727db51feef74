"""boto3: Converse and ConverseStream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import boto3
from botocore.config import Config

from adapters import SMOL, WEATHER, WEATHER_SPEC, Server, Turn, in_bedrocks_form


def bedrock_runtime(server: Server) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(retries={"max_attempts": 1}),
    )


class Adapter:
    def __init__(self, server: Server) -> None:
        self._client = bedrock_runtime(server)
        self._model = server.model or SMOL

    def _asked(self, turns: Sequence[Turn], max_tokens: int) -> dict[str, Any]:
        return {
            "modelId": self._model,
            "messages": in_bedrocks_form(turns),
            "inferenceConfig": {"maxTokens": max_tokens, "temperature": 0.0},
        }

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        answer = self._client.converse(**self._asked(turns, max_tokens))
        return str(answer["output"]["message"]["content"][0]["text"])

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        events = self._client.converse_stream(**self._asked(turns, max_tokens))["stream"]
        return [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        tools = {"tools": [{"toolSpec": WEATHER_SPEC}], "toolChoice": {"tool": {"name": WEATHER}}}
        answer = self._client.converse(**self._asked(turns, 64), toolConfig=tools)
        assert answer["stopReason"] == "tool_use"
        made = next(block["toolUse"] for block in answer["output"]["message"]["content"] if "toolUse" in block)
        return made["name"], made["input"]


connect = Adapter
