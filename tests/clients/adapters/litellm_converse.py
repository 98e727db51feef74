"""LiteLLM: bedrock/converse, and what its other two ways share with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import litellm

from adapters import NOVA, WEATHER, WEATHER_FUNCTION, Server, Turn, in_openais_form


class Completions:
    """``way`` goes before the model's id."""

    def __init__(self, way: str, model: str, **connection: Any) -> None:
        self._model = f"{way}{model}"
        self._connection = connection

    def _create(self, turns: Sequence[Turn], max_tokens: int, **more: Any) -> Any:
        return litellm.completion(
            model=self._model,
            messages=in_openais_form(turns),
            max_tokens=max_tokens,
            temperature=0,
            num_retries=0,
            max_retries=0,
            **self._connection,
            **more,
        )

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._create(turns, max_tokens).choices[0].message.content)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        chunks = self._create(turns, max_tokens, stream=True)
        return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        named = {"type": "function", "function": {"name": WEATHER}}
        made = self._create(turns, 64, tools=[WEATHER_FUNCTION], tool_choice=named)
        function = made.choices[0].message.tool_calls[0].function
        return function.name, json.loads(function.arguments)


def over_bedrock(way: str, server: Server) -> Completions:
    return Completions(
        way,
        server.model or NOVA,
        aws_bedrock_runtime_endpoint=server.url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        aws_region_name="us-east-1",
    )


def connect(server: Server) -> Completions:
    return over_bedrock("bedrock/converse/", server)
