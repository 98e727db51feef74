from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys
from diptych.gateway.auth.keys import digest
from diptych.gateway.quotas import PER_DAY, PER_MINUTE, Budget, Quotas, Reservation
from diptych.gateway.refusals import Throttled
from support.scripted import ScriptedService

KEY = Key(name="k", api_key_sha256=digest("k"), tokens_per_minute=6000, tokens_per_day=100_000)
BEARER = {"authorization": "Bearer k"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_reserved_settled_and_refilled() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    held = quotas.reserve(KEY, "m", 5000)
    with pytest.raises(Throttled, match=PER_MINUTE):
        quotas.reserve(KEY, "m", 1001)
    quotas.settle(held, 200)
    quotas.settle(held, 0)
    quotas.reserve(KEY, "m", 5800)
    with pytest.raises(Throttled):
        quotas.reserve(KEY, "m", 1)
    clock.now = 30.0
    quotas.reserve(KEY, "m", 3000)
    quotas.reserve(KEY, "another model", 6000)


def test_the_day_has_a_budget_of_its_own_and_a_refusal_takes_from_none() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    for minute in range(17):
        clock.now = minute * 60.0
        if minute < 16:
            quotas.reserve(KEY, "m", 6000)
    with pytest.raises(Throttled, match=PER_DAY):
        quotas.reserve(KEY, "m", 6000)
    quotas.reserve(KEY, "m", 4000)


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 900)), max_size=60))
def test_nothing_is_over_admitted_or_lost(requests: list[tuple[int, int]]) -> None:
    budget = Budget(1000, 60.0, PER_MINUTE)
    held: list[tuple[Reservation, int]] = []
    for tokens, used in requests:
        if budget.level(0.0) >= tokens:
            budget.add(0.0, -tokens)
            held.append((Reservation((budget,), tokens), min(used, tokens)))
        assert 0 <= budget.level(0.0) == 1000 - sum(one.tokens for one, _ in held)
    for one, _ in held:
        one.settle(0.0, 0)
    assert budget.level(0.0) == 1000


def test_without_a_key_or_a_limit_nothing_is_counted() -> None:
    quotas = Quotas(Clock())
    quotas.reserve(None, "m", 10**9)
    quotas.reserve(Key(name="free", api_key_sha256="0"), "m", 10**9)


def asked(text: str, max_tokens: int) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}


async def test_200_at_once_are_admitted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    service = ScriptedService()
    app = build_app(service, keys=Keys([KEY]))
    clock = Clock()
    monkeypatch.setattr(app.gateway.quotas, "_clock", clock)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway", headers=BEARER
    ) as client:
        texts = ("wait 0.05\nsay a", "wait 0.05\nraise EngineError", "wait 0.05\nsay b")
        bodies = [asked(texts[index % 3], 100) for index in range(200)]
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
        prompt = {len(request.prompt) + 100 for request in service.requests}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(service.requests) == 200 - len(refused)
        assert (len(service.requests) + 1) * max(prompt) > 6000 >= len(service.requests) * min(prompt)
        assert refused[0].json()["error"]["message"] == PER_MINUTE
        used = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
        (minute, _) = app.gateway.quotas._of(KEY, "tiny")
        assert minute.level(clock.now) == 6000 - used


async def test_bedrock_says_it_in_its_own_words() -> None:
    app = build_app(ScriptedService(), keys=Keys([KEY]))
    body = {"messages": [{"role": "user", "content": [{"text": "say x"}]}], "inferenceConfig": {"maxTokens": 4000}}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway", headers=BEARER
    ) as client:
        slow = asyncio.create_task(client.post("/model/tiny/converse", json={**body, "messages": [
            {"role": "user", "content": [{"text": "wait 0.2\nsay x"}]}]}))  # fmt: skip
        await asyncio.sleep(0.05)
        answer = await client.post("/model/tiny/converse", json=body)
        assert answer.status_code == 429
        assert answer.headers["x-amzn-errortype"].startswith("ThrottlingException")
        assert answer.json() == {"message": PER_MINUTE}
        assert (await slow).status_code == 200
        assert (await client.post("/model/tiny/converse", json=body)).status_code == 200
