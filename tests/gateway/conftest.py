from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import openai
import pytest
from botocore.config import Config

from diptych.gateway.app import GatewayApp, build_app
from support.process import GatewayProcess
from support.scripted import ScriptedService


@pytest.fixture(scope="session")
def gateway() -> Iterator[GatewayProcess]:
    process = GatewayProcess(BODY_TIMEOUT_S="1.0")
    yield process
    process.stop()


@pytest.fixture(scope="session")
def bedrock(gateway: GatewayProcess) -> Any:
    config = Config(retries={"max_attempts": 1, "mode": "standard"})
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=config,
    )
    yield client
    client.close()


@pytest.fixture(scope="session", params=["/v1", "/openai/v1"])
def chat(gateway: GatewayProcess, request: pytest.FixtureRequest) -> Any:
    with openai.OpenAI(base_url=gateway.url + request.param, api_key="none", max_retries=0) as client:
        yield client


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
