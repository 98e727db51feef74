"""The long form: 20,000 generated and mutated requests to one gateway, after which nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import os

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gateway_conformance import BODIED, MODEL, answered, gateway_app, refused, relaxed
from test_gateway_fuzz import BODIES, mutated
from test_gateway_shapes import DIALECTS, asked, bodies

from diptych.gateway.app import GatewayApp
from diptych.gateway.generation import Generation
from diptych.gateway.routes import Call

REQUESTS = int(os.environ.get("CONFORMANCE_REQUESTS", "20000"))


class Soaked:
    """One gateway for all requests, and how many there were."""

    def __init__(self) -> None:
        self.app = gateway_app()
        self.requests = 0

    def check(self) -> None:
        self.requests += 1
        service = self.app.gateway.service
        assert service.running == 0
        assert len(self.app.gateway.in_flight) == 0
        service.requests.clear()
        if self.requests % 500 == 0:
            gc.collect()
            left = [kept for kept in gc.get_objects() if isinstance(kept, (Call, Generation))]
            assert not left, f"{len(left)} of {self.requests} requests are still in memory"


@pytest.fixture(scope="module")
def soaked() -> Soaked:
    return Soaked()


async def fuzzed(app: GatewayApp, path: str, data: st.DataObject) -> None:
    transport = httpx.ASGITransport(app)
    async with asyncio.timeout(60), httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        answer = await client.post(path, content=msgspec.json.encode(data.draw(mutated(BODIES[path]))))
    assert answer.status_code < 500, answer.text


@pytest.mark.soak
@pytest.mark.timeout(7200)
@settings(relaxed, max_examples=REQUESTS, derandomize=False)
@given(data=st.data())
async def test_twenty_thousand_requests_leave_nothing_behind(soaked: Soaked, data: st.DataObject) -> None:
    before = asyncio.all_tasks()
    kind = data.draw(st.sampled_from(["valid", "invalid", "shapes", "mutated"]))
    if kind == "valid":
        await answered(soaked.app, data.draw(st.sampled_from(list(MODEL))), data)
    elif kind == "invalid":
        await refused(soaked.app, data.draw(st.sampled_from(BODIED)), data)
    elif kind == "shapes":
        dialect = data.draw(st.sampled_from(DIALECTS))
        await asked(soaked.app, dialect, data.draw(bodies(dialect)))
    else:
        await fuzzed(soaked.app, data.draw(st.sampled_from(list(BODIES))), data)
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    soaked.check()
