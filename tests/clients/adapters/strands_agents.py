"""strands-agents: an agent over BedrockModel, which streams whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import boto3
from botocore.config import Config
from strands import Agent
from strands.models import BedrockModel
from strands.types.exceptions import MaxTokensReachedException

from adapters import SMOL, WEATHER_SPEC, Server, Turn, in_bedrocks_form


class Adapter:
    def __init__(self, server: Server) -> None:
        self._server = server

    def _model(self, max_tokens: int) -> BedrockModel:
        server = self._server
        session = boto3.Session(server.access_key_id, server.secret_access_key, region_name="us-east-1")
        return BedrockModel(
            boto_session=session,
            boto_client_config=Config(retries={"max_attempts": 1}),
            endpoint_url=server.url,
            model_id=server.model or SMOL,
            max_tokens=max_tokens,
            temperature=0.0,
        )

    def _agent(self, turns: Sequence[Turn], max_tokens: int) -> tuple[Agent, str]:
        agent = Agent(self._model(max_tokens), messages=in_bedrocks_form(turns[:-1]), callback_handler=None)
        return agent, turns[-1][1]

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return "".join(self.stream(turns, max_tokens))

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        return asyncio.run(self._said(turns, max_tokens))

    async def _said(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        agent, text = self._agent(turns, max_tokens)
        said: list[str] = []
        with contextlib.suppress(MaxTokensReachedException):  # an answer that was cut is a failure to an agent
            async for event in agent.stream_async(text):
                said += [event["data"]] if "data" in event else []
        return said

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        return asyncio.run(self._called(turns))

    async def _called(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        stream = self._model(64).stream(in_bedrocks_form(turns), [WEATHER_SPEC], tool_choice={"any": {}})
        name, text = "", ""
        async for event in stream:
            if "contentBlockStart" in event:
                name = event["contentBlockStart"]["start"]["toolUse"]["name"]
            if "contentBlockDelta" in event:
                text += event["contentBlockDelta"]["delta"].get("toolUse", {}).get("input", "")
        return name, json.loads(text)


connect = Adapter
