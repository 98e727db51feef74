"""llama-index-llms-bedrock-converse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.bedrock_converse import BedrockConverse

from adapters import NOVA, WEATHER, WEATHER_TEXT, Server, Turn
from adapters.typed_weather import weather


class Adapter:
    def __init__(self, server: Server) -> None:
        self._server = server

    def _llm(self, max_tokens: int) -> BedrockConverse:
        server = self._server
        return BedrockConverse(
            model=server.model or NOVA,
            endpoint_url=server.url,
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
            region_name="us-east-1",
            max_tokens=max_tokens,
            temperature=0.0,
            max_retries=1,
        )

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._llm(max_tokens).chat(_messages(turns)).message.content)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        return [str(part.delta) for part in self._llm(max_tokens).stream_chat(_messages(turns)) if part.delta]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        tool = FunctionTool.from_defaults(weather, name=WEATHER, description=WEATHER_TEXT)
        llm = self._llm(64)
        answer = llm.chat_with_tools([tool], chat_history=_messages(turns), tool_required=True)
        made = llm.get_tool_calls_from_response(answer)[0]
        return made.tool_name, made.tool_kwargs


def _messages(turns: Sequence[Turn]) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=text) for role, text in turns]


connect = Adapter
