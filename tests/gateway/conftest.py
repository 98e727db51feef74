from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from diptych.gateway.app import GatewayApp, build_app
from support.process import GatewayProcess
from support.scripted import ScriptedService


@pytest.fixture(scope="session")
def gateway() -> Iterator[GatewayProcess]:
    process = GatewayProcess(BODY_TIMEOUT_S="1.0")
    yield process
    process.stop()


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def app(service: ScriptedService) -> GatewayApp:
    return build_app(service)


@pytest.fixture
async def client(app: GatewayApp) -> httpx.AsyncClient:
    """The app without a server, for what needs no socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
