"""What is known of requests when they are over: cost, usage, metrics, spans, the invocation log, the dashboard."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from diptych.config import Prices
from diptych.errors import ConfigError
from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys
from diptych.gateway.auth.keys import digest
from diptych.gateway.features import Features
from diptych.gateway.invocation_log import InvocationLog
from diptych.gateway.ledger import DAYS_KEPT, Ledger
from diptych.gateway.tracing import Tracing, from_environment
from diptych.types import Parts, RequestRecord
from support.scripted import ScriptedService

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "diptych.json"
PRICES = Prices(input=2.0, cached=0.5, output=10.0)
KEY = Key(name="blue", api_key_sha256=digest("k"), tokens_per_minute=300)
RECORD = RequestRecord(
    id="r", model="m", placement="disaggregated", prefill="p", decode="d", operation="Converse", status="finished",
    prompt_tokens=1000, cached_tokens=400, output_tokens=100, started_at=1_700_000_000.0, ttft_ms=30.0, e2e_ms=130.0,
    parts_ms=Parts(1.0, 10.0, 2.0, 5.0, 4.0, 8.0),
)  # fmt: skip


def client_of(**features: Any) -> httpx.AsyncClient:
    app = build_app(ScriptedService(), keys=Keys([KEY]), features=Features(**features))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway", headers={"authorization": "Bearer k"}
    )


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": text}]}], "inferenceConfig": {"maxTokens": 20}, **more}


def test_a_ledger_by_day_key_and_model() -> None:
    now = 0.0
    ledger = Ledger(PRICES, lambda: now)
    ledger.charge(RECORD, "blue")
    assert RECORD.cost == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 10) / 1e6)
    assert RECORD.key == "blue"
    ledger.charge(RECORD, None)
    now = 86_400.0
    ledger.charge(RECORD, "blue")
    assert [(one["day"], one["key"]) for one in ledger.report()["usage"]] == [
        ("1970-01-02", "blue"), ("1970-01-01", None), ("1970-01-01", "blue"),
    ]  # fmt: skip
    (only,) = ledger.report(key="blue", day="1970-01-01")["usage"]
    assert (only["requests"], only["input_tokens"], only["cached_tokens"]) == (1, 1000, 400)
    for day in range(2, 100):
        now = day * 86_400.0
        ledger.charge(RECORD, "blue")
    assert len({one["day"] for one in ledger.report()["usage"]}) == DAYS_KEPT


async def test_usage_and_cost_are_served() -> None:
    async with client_of(prices=PRICES) as client:
        answer = await client.post("/model/tiny/converse", json=asked("say abc"))
        await client.post("/model/tiny/converse", json=asked("raise EngineError"))
        report = (await client.get("/diptych/usage?key=blue")).json()
        (line,) = report["usage"]
        usage = answer.json()["usage"]
        assert report["currency"] == "USD"
        assert (line["requests"], line["output_tokens"]) == (1, usage["outputTokens"])
        assert line["cost"] == pytest.approx((usage["inputTokens"] * 2 + usage["outputTokens"] * 10) / 1e6)
        record = (await client.get(f"/diptych/requests/{answer.headers['x-request-id']}")).json()
        assert (record["key"], record["cost"]) == ("blue", pytest.approx(line["cost"]))
        assert (await client.get("/diptych/usage?key=red")).json()["usage"] == []


async def test_spans_of_the_parts_under_the_clients_trace() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    tracing.ended(RECORD, {"traceparent": parent}, 200)
    *parts, whole = exporter.get_finished_spans()
    names = ["queue", "prefill", "convert", "transfer", "decode_queue", "first_step", "decode"]
    assert [span.name for span in parts] == names
    assert whole.name == "Converse m"
    assert f"{whole.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    assert {span.parent.span_id for span in parts} == {whole.context.span_id}
    for before, after in pairwise(parts):
        assert before.end_time == after.start_time
    assert (whole.start_time, whole.end_time - whole.start_time) == (parts[0].start_time, 130_000_000)
    assert parts[-1].end_time == whole.end_time
    assert whole.attributes["gen_ai.usage.input_tokens"] == 1000
    exporter.clear()
    async with client_of(tracing=tracing) as client:
        await client.post("/model/tiny/converse", json=asked("say x"), headers={"traceparent": "nonsense"})
        await client.post("/model/tiny/converse", json=asked("raise EngineError"))
    fine, failed = exporter.get_finished_spans()
    assert fine.parent is None
    assert (failed.status.status_code.name, failed.attributes["http.response.status_code"]) == ("ERROR", 424)


def test_tracing_is_off_unless_the_environment_says_so() -> None:
    assert from_environment({}) is None
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}) is None
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER"):
        from_environment({"OTEL_TRACES_EXPORTER": "zipkin"})
    on = from_environment({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"})
    assert on is not None
    on.close()


async def test_the_invocation_log(tmp_path: Path) -> None:
    path = tmp_path / "invocations.jsonl"
    log = InvocationLog(str(path))
    async with client_of(invocation_log=log) as client:
        configured = (await client.get("/logging/modelinvocations")).json()["loggingConfig"]
        assert configured["cloudWatchConfig"]["logGroupName"] == str(path)
        await client.post("/model/tiny/converse", json=asked("say abc", requestMetadata={"team": "a"}))
        await client.post("/model/tiny/converse-stream", json=asked("say abc"))
        llama = "/model/meta.llama3-1-8b-instruct-v1%3A0/invoke"
        metadata = {"x-amzn-bedrock-request-metadata": '{"job": "7"}'}
        await client.post(llama, json={"prompt": "say abc", "max_gen_len": 9}, headers=metadata)
        await client.post("/model/tiny/converse", json=asked("say abc", inferenceConfig={"maxTokens": 4000}))
        chat = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "say abc"}]}
        await client.post("/v1/chat/completions", json={**chat, "stream": True})
    log.close()
    whole, stream, native, throttled, sse = map(json.loads, path.read_text().splitlines())
    assert (whole["schemaType"], whole["schemaVersion"]) == ("ModelInvocationLog", "1.0")
    assert (whole["operation"], whole["modelId"], whole["requestMetadata"]) == ("Converse", "tiny", {"team": "a"})
    assert whole["identity"]["arn"].endswith(":user/blue")
    assert whole["input"]["inputBodyJson"]["messages"][0]["content"][0]["text"] == "say abc"
    assert whole["output"]["outputBodyJson"]["output"]["message"]["content"] == [{"text": "abc"}]
    assert whole["output"]["outputTokenCount"] == whole["output"]["outputBodyJson"]["usage"]["outputTokens"]
    assert stream["operation"] == "ConverseStream"
    assert stream["output"]["outputBodyJson"][0] == {"messageStart": {"role": "assistant"}}
    assert (native["operation"], native["modelId"]) == ("InvokeModel", "meta.llama3-1-8b-instruct-v1:0")
    assert native["requestMetadata"] == {"job": "7"}
    assert (throttled["errorCode"], throttled["output"]["outputTokenCount"]) == ("ThrottlingException", 0)
    assert sse["operation"] == "ChatCompletions"
    assert sse["output"]["outputBodyJson"][-1] == "[DONE]"


async def test_metadata_and_logs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        InvocationLog(str(tmp_path / "no" / "folder"))
    async with client_of() as client:
        assert (await client.get("/logging/modelinvocations")).json() == {}
        answer = await client.post("/model/tiny/converse", json=asked("x", requestMetadata={"a": "{}"}))
        assert (answer.status_code, "requestMetadata" in answer.text) == (400, True)
        wrong = {"x-amzn-bedrock-request-metadata": "[1]"}
        assert (await client.post("/model/tiny/invoke", json={}, headers=wrong)).status_code == 400


async def test_metrics_and_a_dashboard_of_them() -> None:
    app = build_app(ScriptedService(), features=Features(prices=PRICES))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        await client.post("/model/tiny/converse", json=asked("say abc"))
        await client.post("/model/tiny/converse", json=asked("raise Overloaded"))
        await client.post("/model/tiny/converse", json=asked("raise EngineError"))
        await client.post("/model/nope/converse", json=asked("say abc"))
        text = (await client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    values = {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}
    assert values["diptych_throttles_total", "converse"] == 1
    assert values["diptych_client_errors_total", "converse"] == 2
    assert values["diptych_quota_tokens_total", "Converse", "tiny"] > 4
    known = {one.name for family in families for one in family.samples} | {family.name for family in families}
    known |= set(re.findall(r"# TYPE (\w+)", text))
    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    asked_for = {name for query in queries for name in re.findall(r"\bdiptych_\w+", query)}
    assert len(queries) > 10
    bases = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked_for} <= bases
