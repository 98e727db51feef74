"""Starts and stops the scripted gateway as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

_TESTS = Path(__file__).parent.parent


class GatewayProcess:
    """A real server process over the scripted service."""

    def __init__(self, **environment: str) -> None:
        path = os.pathsep.join([str(_TESTS.parent / "src"), str(_TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.gateway_process"],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line) if line else 0
        self.url = f"http://127.0.0.1:{self.port}"

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/health").json()

    def stop(self) -> str:
        """Ends it and returns what it wrote to stderr."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> str:
        """Waits for its end and returns what it wrote to stderr."""
        try:
            return self.process.communicate(timeout=15)[1]
        finally:
            self.process.kill()
