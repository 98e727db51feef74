"""openai-python: chat completions at /openai/v1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import openai

from adapters import SMOL, WEATHER_FUNCTION, Server, Turn, in_openais_form


class Adapter:
    def __init__(self, server: Server) -> None:
        self._client = openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key=server.api_key, max_retries=0)
        self._model = server.model or SMOL

    def _create(self, turns: Sequence[Turn], max_tokens: int, **more: Any) -> Any:
        return self._client.chat.completions.create(
            model=self._model, messages=in_openais_form(turns), max_tokens=max_tokens, temperature=0, **more
        )

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._create(turns, max_tokens).choices[0].message.content)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        chunks = self._create(turns, max_tokens, stream=True)
        return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        made = self._create(turns, 64, tools=[WEATHER_FUNCTION], tool_choice="required")
        function = made.choices[0].message.tool_calls[0].function
        return function.name, json.loads(function.arguments)


connect = Adapter
