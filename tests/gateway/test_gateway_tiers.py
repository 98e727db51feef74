"""Service tiers: asked for, served, echoed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys
from diptych.gateway.auth.keys import digest
from support.scripted import ScriptedService

KEY = Key(
    name="k", api_key_sha256=digest("k"), tokens_per_minute=10_000,
    reserved_input_tokens_per_minute=500, reserved_output_tokens_per_minute=150,
)  # fmt: skip


@pytest.mark.parametrize("tier", ["priority", "default", "flex"])
def test_echoed_with_boto3(bedrock: Any, tier: str) -> None:
    asked = {"modelId": "tiny", "messages": [{"role": "user", "content": [{"text": "echo tier"}]}]}
    answer = bedrock.converse(**asked, serviceTier={"type": tier})
    assert answer["output"]["message"]["content"][0]["text"] == f'"{tier}"'
    assert answer["serviceTier"] == {"type": tier}
    *_, last = bedrock.converse_stream(**asked, serviceTier={"type": tier})["stream"]
    assert last["metadata"]["serviceTier"] == {"type": tier}
    for model, key in (("meta.llama3-1-8b-instruct-v1:0", "prompt"), ("deepseek.r1-v1:0", "prompt")):
        native = bedrock.invoke_model(modelId=model, body=json.dumps({key: "echo tier"}), serviceTier=tier)
        assert native["serviceTier"] == tier
        assert f'\\"{tier}\\"' in native["body"].read().decode()
    assert "serviceTier" not in bedrock.converse(**asked)


def test_reserved_without_a_reservation_is_the_default(bedrock: Any) -> None:
    asked = {"modelId": "tiny", "messages": [{"role": "user", "content": [{"text": "echo tier"}]}]}
    answer = bedrock.converse(**asked, serviceTier={"type": "reserved"})
    assert answer["serviceTier"] == {"type": "default"}
    assert answer["output"]["message"]["content"][0]["text"] == '"default"'
    with pytest.raises(Exception, match="ValidationException"):
        bedrock.converse(**asked, serviceTier={"type": "express"})


async def test_reserved_overflows_and_comes_back() -> None:
    app = build_app(ScriptedService(), keys=Keys([KEY]))
    body = {
        "messages": [{"role": "user", "content": [{"text": "wait 0.1\nsay x"}]}],
        "inferenceConfig": {"maxTokens": 100},
        "serviceTier": {"type": "reserved"},
    }
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway", headers={"authorization": "Bearer k"}
    ) as client:
        both = await asyncio.gather(*(client.post("/model/tiny/converse", json=body) for _ in range(2)))
        assert sorted(answer.json()["serviceTier"]["type"] for answer in both) == ["default", "reserved"]
        again = await client.post("/model/tiny/converse", json=body)
        assert again.json()["serviceTier"]["type"] == "reserved"
    (minute,) = app.gateway.quotas._of(KEY, "tiny")
    overflowed = next(answer for answer in both if answer.json()["serviceTier"]["type"] == "default")
    assert 10_000 - minute.level(app.gateway.quotas._clock()) <= overflowed.json()["usage"]["totalTokens"]
