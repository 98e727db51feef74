"""Vercel's AI SDK with @ai-sdk/amazon-bedrock."""

from __future__ import annotations

from adapters import NOVA, Server
from adapters.javascript import Script


def connect(server: Server) -> Script:
    return Script("ai_bedrock", NOVA, server)
