"""``diptych serve``: the supervisor's process. It finds the model, starts workers and gateway, and ends them."""

from __future__ import annotations

import asyncio
import logging
import socket

import msgspec

from diptych.config import FleetSettings
from diptych.errors import ConfigError
from diptych.fleet.lifeline import stop_on_signals
from diptych.fleet.local import LocalWorkers
from diptych.fleet.rundir import RunDir
from diptych.fleet.supervisor import ProcessSpec, Supervisor
from diptych.gateway.main import GatewaySpec
from diptych.models.cache import cache_folder
from diptych.models.resolve import ModelBundle, resolve_model

log = logging.getLogger("diptych")


def find_model(settings: FleetSettings) -> ModelBundle:
    """The model that the settings name, fetched if need be. Raises ConfigError."""
    named = settings.model
    bundle = resolve_model(named.source, gguf=named.gguf, aliases=named.aliases)
    return msgspec.structs.replace(bundle, id=named.id) if named.id else bundle


def check_port(host: str, port: int) -> None:
    """Says at once that a port cannot be had, before anything is loaded. Raises ConfigError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror}; choose another --host or --port") from None


async def run(settings: FleetSettings) -> None:
    """Until SIGINT or SIGTERM. Raises ConfigError when a part refuses its settings."""
    stop = stop_on_signals()
    check_port(settings.gateway.host, settings.gateway.port)
    model = find_model(settings)
    rundir = RunDir()
    try:
        workers = LocalWorkers(settings, model, rundir)
        gateway = GatewaySpec(
            settings=settings, model=model, addresses=workers.addresses, cache=str(cache_folder("qualified"))
        )
        spec = ProcessSpec(name="gateway", module="diptych.gateway.main", settings=msgspec.json.encode(gateway))
        supervisor = Supervisor([*workers.specs, spec])
        keeping = asyncio.create_task(supervisor.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((keeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        supervisor.stop()
        stopping.cancel()
        await keeping
    finally:
        rundir.close()
