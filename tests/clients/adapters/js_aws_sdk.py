"""@aws-sdk/client-bedrock-runtime, which speaks HTTP/2 without TLS."""

from __future__ import annotations

from adapters import SMOL, Server
from adapters.javascript import Script


def connect(server: Server) -> Script:
    return Script("aws_sdk", SMOL, server)
