"""The llama-server that an engine talks to: its own child, or somebody else's by address."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec

from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.process import ServerProcess
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.errors import ConfigError


class Server(NamedTuple):
    """``process`` is None where the server is somebody else's. ``build`` names what computes."""

    client: Client
    process: ServerProcess | None
    build: str

    @classmethod
    async def start(cls, settings: Settings, model: Model) -> Server:
        """Raises ConfigError, or WorkerError where it answers and then fails."""
        _check_directory(Path(settings.slot_dir))
        if settings.address is not None:
            client = Client(settings.address, settings.api_key, settings.token_timeout_s)
            return cls(client, None, await _named_by(client))
        process = await ServerProcess.start(settings, model)
        client = Client(process.address, process.api_key, settings.token_timeout_s, process.kill)
        if settings.binary is None:
            return cls(client, process, f"xllamacpp {version('xllamacpp')}")
        try:
            return cls(client, process, await _named_by(client))
        except BaseException:
            await process.stop()
            raise

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()


def _check_directory(directory: Path) -> None:
    """Whoever can write there could change KV between its check and its use."""
    if not directory.is_dir() or directory.stat().st_mode & 0o077:
        raise ConfigError(f"the slot directory {directory} must exist and have mode 0700")


async def _named_by(client: Client) -> str:
    """A binary knows its own build; the wheel's server does not, its version stands for it."""
    properties = msgspec.json.decode(await client.call("GET", "/props"), type=dict[str, object])
    return f"llama-server {properties.get('build_info', 'of unknown build')}"
