"""openai-js: chat completions."""

from __future__ import annotations

from adapters import SMOL, Server
from adapters.javascript import Script


def connect(server: Server) -> Script:
    return Script("openai", SMOL, server)
