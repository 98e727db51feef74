from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.scripted import ScriptedService


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, tuple[str, ...]], float]:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(one.name, tuple(sorted(one.labels.values()))): one.value for family in families for one in family.samples}


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


async def test_requests_are_counted_at_their_end(client: httpx.AsyncClient, service: ScriptedService) -> None:
    await client.post("/v1/chat/completions", json=chat("say abc"))
    await client.post("/v1/chat/completions", json=chat("say abc", n=2, stream=True))
    await client.post("/v1/chat/completions", json=chat("raise Overloaded"))
    await client.post("/v1/chat/completions", json=chat("x", temperature=9))
    body = {"messages": [{"role": "user", "content": [{"text": "say abc"}]}]}
    await client.post("/model/tiny/converse-stream", json=body)
    found = await samples(client)
    assert found["diptych_invocations_total", ("ChatCompletions", "aggregated", "finished", "tiny")] == 3
    assert found["diptych_invocations_total", ("ChatCompletions", "aggregated", "failed", "tiny")] == 1
    assert found["diptych_invocations_total", ("ConverseStream", "aggregated", "finished", "tiny")] == 1
    assert found["diptych_tokens_total", ("ChatCompletions", "output", "tiny")] == 12
    assert found["diptych_responses_total", ("200", "chat_completions")] == 2
    assert found["diptych_responses_total", ("400", "chat_completions")] == 1
    assert found["diptych_responses_total", ("429", "chat_completions")] == 1
    assert found["diptych_requests_running", ()] == 0


async def test_handoffs_are_the_services(client: httpx.AsyncClient, service: ScriptedService) -> None:
    service.handoffs = {"offered": 9, "admitted": 4, "recomputed": {"corrupt_kv": 3}, "failed": {"decode_lost": 2}}
    found = await samples(client)
    assert found["diptych_handoff_offered_total", ()] == 9
    assert found["diptych_handoff_admitted_total", ()] == 4
    assert found["diptych_handoff_recomputed_total", ("corrupt_kv",)] == 3
    assert found["diptych_handoff_failed_total", ("decode_lost",)] == 2
