"""The gateway's process: ``python -m diptych.gateway.main PARENT_PID``, its settings as JSON on stdin.

It holds the service: meets and qualifies the workers, then listens and says so.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import uvloop

from diptych.config import FleetSettings
from diptych.errors import ConfigError, DiptychError
from diptych.fleet.lifeline import tie_to_parent
from diptych.fleet.qualification import Cache
from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys
from diptych.gateway.auth.keys import check_exposure
from diptych.gateway.banner import banner
from diptych.gateway.features import Features
from diptych.gateway.guardrails.policy import Guardrails
from diptych.gateway.intake import Limits
from diptych.gateway.invocation_log import InvocationLog
from diptych.gateway.server import GatewayServer, Listen
from diptych.gateway.tls import certificates
from diptych.gateway.tracing import from_environment
from diptych.models.cache import cache_folder
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.service import ServedModel
from diptych.startup import open_service
from diptych.terminal import StartProgress

GC_ALLOCATIONS = 10_000
"""New objects between two looks for cycles; Python's own 700 is a look every few hundred tokens."""


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that the gateway is told. ``addresses`` are the workers' by id; ``cache`` keeps qualifications."""

    settings: FleetSettings
    model: ModelBundle
    addresses: Mapping[str, str]
    cache: str


def served_model(model: ModelBundle, settings: FleetSettings) -> ServedModel:
    """The model as clients know it."""
    return ServedModel(
        id=model.id,
        aliases=model.aliases,
        context_tokens=min(model.context_tokens, *(worker.ctx_per_request for worker in settings.decode)),
        created=int(time.time()),
        chat=ChatFormat.load(model),
    )


async def serve(spec: GatewaySpec) -> None:
    """Until SIGTERM. Raises ConfigError when the port cannot be had, WorkerError when a worker does not come up."""
    keys = Keys(msgspec.convert(key, Key, from_attributes=True) for key in spec.settings.gateway.keys)
    check_exposure(spec.settings.gateway.host, keys)
    progress = StartProgress()
    model = served_model(spec.model, spec.settings)
    service = await open_service(spec.settings, model, spec.addresses, Cache(Path(spec.cache)), progress)
    progress.close()
    listen = spec.settings.gateway
    limits = Limits(body_bytes=listen.max_body_mb * 1_000_000)
    tls = certificates(cache_folder("tls"), listen.host, listen.region) if listen.tls else None
    features = Features(
        guardrails=Guardrails(spec.settings.guardrails),
        prices=spec.settings.model.prices,
        tracing=from_environment(),
        invocation_log=InvocationLog(listen.invocation_log) if listen.invocation_log else None,
    )
    app = build_app(service, limits, listen.region, keys, features)
    server = GatewayServer(app, Listen(listen.host, listen.port, tls=tls), service.drain)
    scheme = "https" if tls else "http"

    def ready(port: int) -> None:
        print(banner(f"{scheme}://{listen.host}:{port}", model), flush=True)
        if tls is not None:
            print(f"Clients must trust our certificate:\n{tls.hint()}", flush=True)

    _spare_the_collector()
    try:
        await server.serve(ready)
    finally:
        features.close()
        await service.close()


def _spare_the_collector() -> None:
    """What start-up made stays: the cycle collector need not go through it again and again while tokens stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)


def main() -> None:
    """Exit code 2: the settings cannot be used."""
    tie_to_parent(int(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=GatewaySpec)
    try:
        uvloop.run(serve(spec))
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(2)
    except DiptychError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
