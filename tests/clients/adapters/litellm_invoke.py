"""LiteLLM: bedrock/invoke, with Nova's native body."""

from __future__ import annotations

from adapters import Server
from adapters.litellm_converse import Completions, over_bedrock


def connect(server: Server) -> Completions:
    return over_bedrock("bedrock/invoke/", server)
