"""pydantic-ai: an agent over BedrockConverseModel; its tool call is the agent's typed output."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, ModelRequest, ModelResponse, TextPart, ToolOutput, UserPromptPart
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.providers.bedrock import BedrockProvider

from adapters import NOVA, WEATHER, WEATHER_TEXT, Server, Turn
from adapters.boto3_converse import bedrock_runtime
from adapters.typed_weather import City


class Weather(BaseModel):
    city: City


class Adapter:
    def __init__(self, server: Server) -> None:
        provider = BedrockProvider(bedrock_client=bedrock_runtime(server))
        self._model = BedrockConverseModel(server.model or NOVA, provider=provider)

    def _asked(self, turns: Sequence[Turn], max_tokens: int) -> dict[str, Any]:
        history = [_message(role, text) for role, text in turns[:-1]]
        settings = {"max_tokens": max_tokens, "temperature": 0.0}
        return {"user_prompt": turns[-1][1], "message_history": history, "model_settings": settings}

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(Agent(self._model).run_sync(**self._asked(turns, max_tokens)).output)

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        return asyncio.run(self._said(turns, max_tokens))

    async def _said(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        async with Agent(self._model).run_stream(**self._asked(turns, max_tokens)) as answer:
            return [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        output = ToolOutput(Weather, name=WEATHER, description=WEATHER_TEXT)
        answer = Agent(self._model, output_type=output).run_sync(**self._asked(turns, 64))
        return WEATHER, answer.output.model_dump()


def _message(role: str, text: str) -> Any:
    return ModelRequest([UserPromptPart(text)]) if role == "user" else ModelResponse([TextPart(text)])


connect = Adapter
