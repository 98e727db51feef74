"""What people use, each behind the same few methods. One file a client, loaded on first use."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

Turn = tuple[str, str]
"""(role, text)"""

SMOL = "smollm2-135m"
NOVA = "amazon.nova-micro-v1:0"
CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
ALIASES = (NOVA, CLAUDE)

WEATHER = "get_weather"
WEATHER_TEXT = "Tells the weather of a city."
CITIES = ["Paris", "Rome"]
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}},
    "required": ["city"],
}
"""A small model that must call it can only say one of two cities."""


class Server(NamedTuple):
    """Where the client goes, as whom, and for which model (None: the adapter's own choice)."""

    url: str
    access_key_id: str
    secret_access_key: str
    api_key: str
    model: str | None = None


class Lacking(Exception):
    """The client has no such thing; the text says what."""


class Client(Protocol):
    """``turns`` end with the user's. Raises the client's own error when the server refuses."""

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str: ...

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        """The text in the pieces in which it came."""

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        """The name and the arguments of the tool that the model was made to call."""


NAMES = (
    "boto3_converse",
    "aws_cli",
    "openai_python",
    "litellm_converse",
    "litellm_invoke",
    "litellm_openai",
    "langchain",
    "strands_agents",
    "llama_index_converse",
    "pydantic_agents",
    "anthropic_bedrock",
    "js_aws_sdk",
    "js_openai",
    "js_ai_bedrock",
    "js_ai_openai",
)


def connect(name: str, server: Server) -> Client:
    """The client ``name``, set up as its users do."""
    client: Client = importlib.import_module(f"adapters.{name}").connect(server)
    return client


def in_bedrocks_form(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"text": text}]} for role, text in turns]


def in_openais_form(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


WEATHER_SPEC: dict[str, Any] = {
    "name": WEATHER, "description": WEATHER_TEXT, "inputSchema": {"json": WEATHER_SCHEMA}
}  # fmt: skip
WEATHER_FUNCTION: dict[str, Any] = {
    "type": "function",
    "function": {"name": WEATHER, "description": WEATHER_TEXT, "parameters": WEATHER_SCHEMA},
}
