"""langchain-aws: ChatBedrockConverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_aws import ChatBedrockConverse

from adapters import NOVA, WEATHER_FUNCTION, Server, Turn
from adapters.boto3_converse import bedrock_runtime


class Adapter:
    def __init__(self, server: Server) -> None:
        self._server = server

    def _chat(self, max_tokens: int) -> Any:
        return ChatBedrockConverse(
            model=self._server.model or NOVA,
            client=bedrock_runtime(self._server),
            max_tokens=max_tokens,
            temperature=0,
        )

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._chat(max_tokens).invoke(list(turns)).text)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        return [chunk.text for chunk in self._chat(max_tokens).stream(list(turns)) if chunk.text]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        bound = self._chat(64).bind_tools([WEATHER_FUNCTION], tool_choice="any")
        made = bound.invoke(list(turns)).tool_calls[0]
        return made["name"], made["args"]


connect = Adapter
