"""The clients that people use, against the whole fleet: answers, streams, usage, ids, records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import openai
import pytest

from support.fleet import Fleet, proven
from support.load import question

pytestmark = pytest.mark.e2e

MODELS = ("smollm2-135m", "amazon.nova-micro-v1:0")
SHORT = "Why is the sky blue?"
TOKENS = 12


@pytest.fixture(scope="module")
def bedrock(fleet: Fleet) -> Iterator[Any]:
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=fleet.url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    yield client
    client.close()


@pytest.fixture(scope="module")
def chat(fleet: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def arguments(model: str, text: str) -> dict[str, Any]:
    return {
        "modelId": model,
        "messages": [{"role": "user", "content": [{"text": text}]}],
        "inferenceConfig": {"maxTokens": TOKENS, "temperature": 0.0},
        "additionalModelRequestFields": {"ignore_eos": True},
    }


def check_record(fleet: Fleet, request_id: str, operation: str, prompt_tokens: int) -> bool:
    """The record agrees with what the client was told; whether it was disaggregated."""
    record = fleet.record(request_id)
    assert record["operation"] == operation
    assert (record["prompt_tokens"], record["output_tokens"]) == (prompt_tokens, TOKENS)
    assert record["finish"] == "length"
    assert 0 < record["ttft_ms"] <= record["e2e_ms"]
    assert record["itl_ms"] > 0
    assert sum(record["parts_ms"].values()) == pytest.approx(record["ttft_ms"], rel=0.25, abs=20)
    return proven(record)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pair", [False, True], ids=["short", "long"])
def test_bedrock(fleet: Fleet, bedrock: Any, model: str, pair: bool) -> None:
    """Converse and ConverseStream. No prompt was seen before: the router would go by what is cached."""
    text = question(30 + len(model), 250) if pair else SHORT
    whole = bedrock.converse(**arguments(model, text))
    metadata = whole["ResponseMetadata"]
    assert metadata["HTTPHeaders"]["x-request-id"] == metadata["RequestId"]
    assert whole["stopReason"] == "max_tokens"
    usage = whole["usage"]
    assert usage["outputTokens"] == TOKENS
    assert usage["totalTokens"] == usage["inputTokens"] + TOKENS
    assert check_record(fleet, metadata["RequestId"], "Converse", usage["inputTokens"]) >= pair

    stream = bedrock.converse_stream(**arguments(model, text))
    events = list(stream["stream"])
    assert [next(iter(event)) for event in events[:1] + events[-3:]] == [
        "messageStart", "contentBlockStop", "messageStop", "metadata",
    ]  # fmt: skip
    said = [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]
    assert len(said) > TOKENS / 2, "tokens come as they are made"
    assert events[-1]["metadata"]["usage"] == usage
    check_record(fleet, stream["ResponseMetadata"]["RequestId"], "ConverseStream", usage["inputTokens"])
    assert "".join(said)


@pytest.mark.parametrize("pair", [False, True], ids=["short", "long"])
def test_openai(fleet: Fleet, chat: openai.OpenAI, pair: bool) -> None:
    text = question(29, 250) if pair else SHORT
    asked: Any = {
        "model": MODELS[0],
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    raw = chat.chat.completions.with_raw_response.create(**asked)
    whole = raw.parse()
    assert raw.headers["x-request-id"] == raw.headers["x-amzn-requestid"]
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens == TOKENS
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + TOKENS
    operation = "ChatCompletions"
    assert check_record(fleet, raw.headers["x-request-id"], operation, whole.usage.prompt_tokens) >= pair

    raw = chat.chat.completions.with_raw_response.create(
        **asked, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(raw.parse())
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(said) > TOKENS / 2
    found = [
        c for chunk in chunks if chunk.choices and chunk.choices[0].logprobs for c in chunk.choices[0].logprobs.content
    ]
    assert "".join(c.token for c in found) == "".join(said)
    last = chunks[-1]
    assert last.usage.completion_tokens == TOKENS
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    check_record(fleet, raw.headers["x-request-id"], operation, whole.usage.prompt_tokens)


def test_models(fleet: Fleet, chat: openai.OpenAI) -> None:
    assert {model.id for model in chat.models.list()} >= set(MODELS)


def test_every_response_has_an_id(fleet: Fleet) -> None:
    seen = set()
    for method, path in (
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/diptych/requests"),
        ("GET", "/diptych/requests/none"),
        ("GET", "/nowhere"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/model/none/converse"),
        ("DELETE", "/model/none/converse"),
    ):
        answer = httpx.request(method, f"{fleet.url}{path}")
        assert answer.headers["x-request-id"] == answer.headers["x-amzn-requestid"], path
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 8


def test_a_seed_repeats_itself(chat: openai.OpenAI) -> None:
    asked: Any = {"model": MODELS[0], "messages": [{"role": "user", "content": SHORT}], "max_tokens": 24, "seed": 7}
    texts = [chat.chat.completions.create(**asked, temperature=1.2).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_stop_sequence_ends_it(fleet: Fleet, bedrock: Any) -> None:
    asked = arguments(MODELS[0], "Count: one, two, three, four")
    full = bedrock.converse(**asked)["output"]["message"]["content"][0]["text"]
    stop = full[len(full) // 2 :][:3]
    asked["inferenceConfig"]["stopSequences"] = [stop]
    cut = bedrock.converse(**asked)
    assert cut["stopReason"] == "stop_sequence"
    assert stop not in cut["output"]["message"]["content"][0]["text"]
