"""Vercel's AI SDK with @ai-sdk/openai: the Responses API."""

from __future__ import annotations

from adapters import SMOL, Server
from adapters.javascript import Script


def connect(server: Server) -> Script:
    return Script("ai_openai", SMOL, server)
