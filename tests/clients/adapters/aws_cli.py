"""The AWS CLI, version 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters import SMOL, WEATHER_SPEC, Lacking, Server, Turn, in_bedrocks_form


class Adapter:
    def __init__(self, server: Server) -> None:
        self._server = server

    def _converse(self, turns: Sequence[Turn], max_tokens: int, *more: str) -> dict[str, Any]:
        server = self._server
        secrets = {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key}
        where = {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": server.url, "AWS_DEFAULT_REGION": "us-east-1"}
        config = {"maxTokens": max_tokens, "temperature": 0}
        arguments = ["--model-id", server.model or SMOL, "--messages", json.dumps(in_bedrocks_form(turns))]
        program = [sys.executable, str(Path(sys.executable).with_name("aws")), "bedrock-runtime", "converse"]
        done = subprocess.run(
            [*program, *arguments, "--inference-config", json.dumps(config), "--output", "json", *more],
            env={**os.environ, **secrets, **where, "AWS_MAX_ATTEMPTS": "1"},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return dict(json.loads(done.stdout))

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._converse(turns, max_tokens)["output"]["message"]["content"][0]["text"])

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        raise Lacking("version 1 of the AWS CLI has no streaming commands")

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        tools = {"tools": [{"toolSpec": WEATHER_SPEC}], "toolChoice": {"any": {}}}
        answer = self._converse(turns, 64, "--tool-config", json.dumps(tools))
        made = next(block["toolUse"] for block in answer["output"]["message"]["content"] if "toolUse" in block)
        return made["name"], made["input"]


connect = Adapter
