"""anthropic[bedrock]: Claude's native body over InvokeModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anthropic import AnthropicBedrock

from adapters import CLAUDE, WEATHER, WEATHER_SCHEMA, WEATHER_TEXT, Server, Turn, in_openais_form


class Adapter:
    def __init__(self, server: Server) -> None:
        self._client = AnthropicBedrock(
            base_url=server.url,
            aws_access_key=server.access_key_id,
            aws_secret_key=server.secret_access_key,
            aws_region="us-east-1",
            max_retries=0,
        )
        self._model = server.model or CLAUDE

    def _create(self, turns: Sequence[Turn], max_tokens: int, **more: Any) -> Any:
        asked = {"model": self._model, "messages": in_openais_form(turns), "max_tokens": max_tokens}
        return self._client.messages.create(**asked, **more)

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._create(turns, max_tokens).content[0].text)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        events = self._create(turns, max_tokens, stream=True)
        return [event.delta.text for event in events if event.type == "content_block_delta"]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        tool = {"name": WEATHER, "description": WEATHER_TEXT, "input_schema": WEATHER_SCHEMA}
        answer = self._create(turns, 64, tools=[tool], tool_choice={"type": "tool", "name": WEATHER})
        made = next(block for block in answer.content if block.type == "tool_use")
        return made.name, made.input


connect = Adapter
