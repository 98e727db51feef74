"""LiteLLM: openai."""

from __future__ import annotations

from adapters import SMOL, Server
from adapters.litellm_converse import Completions


def connect(server: Server) -> Completions:
    return Completions("openai/", server.model or SMOL, api_base=f"{server.url}/v1", api_key=server.api_key)
