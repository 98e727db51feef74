"""InvokeModel in each native schema, and CountTokens, with boto3."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, EventStreamError

from support.scripted import ScriptedService

NOVA, LLAMA = "amazon.nova-micro-v1:0", "meta.llama3-1-8b-instruct-v1:0"
MIXTRAL, R1, GPT = "mistral.mixtral-8x7b-instruct-v0:1", "deepseek.r1-v1:0", "openai.gpt-oss-20b-1:0"
SAY = "say ab🎉"

BODIES: dict[str, dict[str, Any]] = {
    NOVA: {"schemaVersion": "messages-v1", "messages": [{"role": "user", "content": [{"text": SAY}]}]},
    LLAMA: {"prompt": SAY, "max_gen_len": 20},
    MIXTRAL: {"prompt": SAY, "max_tokens": 20},
    R1: {"prompt": SAY, "max_tokens": 20},
    GPT: {"messages": [{"role": "user", "content": SAY}], "max_completion_tokens": 20},
}
TEXT = {
    NOVA: lambda body: body["output"]["message"]["content"][0]["text"],
    LLAMA: lambda body: body["generation"],
    MIXTRAL: lambda body: body["outputs"][0]["text"],
    R1: lambda body: body["choices"][0]["text"],
    GPT: lambda body: body["choices"][0]["message"]["content"],
}
DELTA = {
    NOVA: lambda chunk: chunk.get("contentBlockDelta", {}).get("delta", {}).get("text", ""),
    LLAMA: lambda chunk: chunk["generation"],
    MIXTRAL: lambda chunk: chunk["outputs"][0]["text"],
    R1: lambda chunk: chunk["choices"][0]["text"],
    GPT: lambda chunk: chunk["choices"][0]["delta"].get("content") or "",
}
STOP = {
    NOVA: lambda body: body["stopReason"],
    LLAMA: lambda body: body["stop_reason"],
    MIXTRAL: lambda body: body["outputs"][0]["stop_reason"],
    R1: lambda body: body["choices"][0]["stop_reason"],
    GPT: lambda body: body["choices"][0]["finish_reason"],
}


@pytest.mark.parametrize("model", BODIES)
def test_invoke(bedrock: Any, model: str) -> None:
    answer = bedrock.invoke_model(
        modelId=model, body=json.dumps(BODIES[model]), performanceConfigLatency="optimized", serviceTier="priority"
    )
    body = json.loads(answer["body"].read())
    assert TEXT[model](body) == "ab🎉"
    assert STOP[model](body) == ("end_turn" if model == NOVA else "stop")
    assert (answer["performanceConfigLatency"], answer["serviceTier"]) == ("optimized", "priority")
    assert answer["contentType"] == "application/json"
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-bedrock-output-token-count"] == "7"
    assert int(headers["x-amzn-bedrock-input-token-count"]) >= 9


@pytest.mark.parametrize("model", BODIES)
def test_invoke_stream(bedrock: Any, model: str) -> None:
    answer = bedrock.invoke_model_with_response_stream(
        modelId=model, body=json.dumps(BODIES[model]), performanceConfigLatency="standard"
    )
    chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    answer["body"].close()
    assert answer["contentType"] == "application/json"
    assert answer["performanceConfigLatency"] == "standard"
    assert "".join(DELTA[model](chunk) for chunk in chunks) == "ab🎉"
    assert all("amazon-bedrock-invocationMetrics" not in chunk for chunk in chunks[:-1])
    metrics = chunks[-1]["amazon-bedrock-invocationMetrics"]
    assert set(metrics) == {"inputTokenCount", "outputTokenCount", "invocationLatency", "firstByteLatency"}
    assert metrics["outputTokenCount"] == 7


def test_nova_streams_converses_events_in_their_order(bedrock: Any) -> None:
    answer = bedrock.invoke_model_with_response_stream(modelId=NOVA, body=json.dumps(BODIES[NOVA]))
    kinds = [next(iter(json.loads(event["chunk"]["bytes"]))) for event in answer["body"]]
    answer["body"].close()
    assert kinds == ["messageStart", *["contentBlockDelta"] * 3, "contentBlockStop", "messageStop", "metadata"]


def test_llama_counts_its_prompt_in_the_first_chunk_only(bedrock: Any) -> None:
    answer = bedrock.invoke_model_with_response_stream(modelId=LLAMA, body=json.dumps(BODIES[LLAMA]))
    chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    answer["body"].close()
    assert [chunk["prompt_token_count"] for chunk in chunks] == [len("say ab") + 4, None, None, None]
    assert chunks[-1]["stop_reason"] == "stop"


@pytest.mark.parametrize("prefix", ["us.", "global.", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/eu."])
def test_a_profile_speaks_its_models_schema(bedrock: Any, prefix: str) -> None:
    answer = bedrock.invoke_model(modelId=prefix + LLAMA, body=json.dumps(BODIES[LLAMA]))
    assert json.loads(answer["body"].read())["generation"] == "ab🎉"


def test_max_gen_len_is_the_length(bedrock: Any) -> None:
    body = json.dumps({"prompt": SAY, "max_gen_len": 2})
    answer = json.loads(bedrock.invoke_model(modelId=LLAMA, body=body)["body"].read())
    assert (answer["generation"], answer["stop_reason"], answer["generation_token_count"]) == ("ab", "length", 2)


def test_errors_before_and_within_a_stream(bedrock: Any) -> None:
    with pytest.raises(ClientError) as before:
        bedrock.invoke_model_with_response_stream(modelId=LLAMA, body=json.dumps({"prompt": "raise Overloaded"}))
    assert before.value.response["Error"]["Code"] == "ThrottlingException"
    answer = bedrock.invoke_model_with_response_stream(
        modelId=LLAMA, body=json.dumps({"prompt": "say a\nraise EngineError"})
    )
    with pytest.raises(EventStreamError, match="modelStreamErrorException"):
        list(answer["body"])
    answer["body"].close()


BAD: dict[str, tuple[str, Any, str]] = {
    "an unknown field": (LLAMA, {"prompt": "x", "max_tokens": 3}, "unknown field `max_tokens`"),
    "no prompt": (LLAMA, {}, "missing required field `prompt`"),
    "max_gen_len": (LLAMA, {"prompt": "x", "max_gen_len": 0}, "'max_gen_len' failed to satisfy constraint"),
    "images": (LLAMA, {"prompt": "x", "images": ["a"]}, "doesn't support images"),
    "temperature": (MIXTRAL, {"prompt": "x", "temperature": 2}, "'temperature' failed to satisfy constraint"),
    "stops": (R1, {"prompt": "x", "stop": ["a"] * 11}, "less than or equal to 10"),
    "another model": (GPT, {**BODIES[GPT], "model": "openai.gpt-oss-120b-1:0"}, "Omit it"),
    "another stream": (GPT, {**BODIES[GPT], "stream": True}, "which InvokeModel is not"),
    "an empty prompt": (LLAMA, {"prompt": ""}, "prompt is empty"),
    "too long": (LLAMA, {"prompt": "x" * 5000}, "Input is too long for requested model."),
    "reasoning": (
        NOVA,
        {**BODIES[NOVA], "inferenceConfig": {"reasoningConfig": {"type": "enabled"}}},
        "reasoningConfig",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_refused(client: httpx.AsyncClient, service: ScriptedService, case: str) -> None:
    model, body, words = BAD[case]
    answer = await client.post(f"/model/{model}/invoke", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert service.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amzn-bedrock-performanceconfig-latency": "fast"},
        {"x-amzn-bedrock-service-tier": "gold"},
        {"x-amzn-bedrock-guardrailidentifier": "g"},
    ],
)
async def test_headers_are_checked(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post(f"/model/{LLAMA}/invoke", json=BODIES[LLAMA], headers=headers)
    assert answer.status_code == 400


async def test_parameters_reach_the_service(client: httpx.AsyncClient, service: ScriptedService) -> None:
    asked = {"temperature": 0.25, "top_p": 0.5}
    await client.post(f"/model/{LLAMA}/invoke", json={"prompt": SAY, "max_gen_len": 9, **asked})
    await client.post(f"/model/{MIXTRAL}/invoke", json={"prompt": SAY, "max_tokens": 9, "stop": ["#"], **asked})
    config = {"maxTokens": 9, "temperature": 0.25, "topP": 0.5, "topK": 4, "stopSequences": ["#"]}
    await client.post(f"/model/{NOVA}/invoke", json={**BODIES[NOVA], "inferenceConfig": config})
    for request in service.requests:
        assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_p) == (9, 0.25, 0.5)
    assert [request.sampling.stop for request in service.requests] == [(), ("#",), ("#",)]
    assert service.requests[2].sampling.top_k == 4


def test_count_tokens(bedrock: Any) -> None:
    messages = BODIES[NOVA]["messages"]
    counted = bedrock.count_tokens(modelId=NOVA, input={"converse": {"messages": messages}})["inputTokens"]
    assert counted == bedrock.converse(modelId=NOVA, messages=messages)["usage"]["inputTokens"]
    native = {"invokeModel": {"body": json.dumps(BODIES[LLAMA])}}
    assert bedrock.count_tokens(modelId=LLAMA, input=native)["inputTokens"] == len("say ab") + 4


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": {}},
        {"input": {"converse": {}, "invokeModel": {"body": ""}}},
        {"input": {"invokeModel": {"body": "%"}}},
    ],
)
async def test_count_tokens_refuses(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post(f"/model/{LLAMA}/count-tokens", json=body)).status_code == 400


async def test_count_tokens_of_a_native_body(client: httpx.AsyncClient, service: ScriptedService) -> None:
    native = b64encode(json.dumps(BODIES[LLAMA]).encode()).decode()
    answer = await client.post(f"/model/{LLAMA}/count-tokens", json={"input": {"invokeModel": {"body": native}}})
    assert answer.json() == {"inputTokens": 10}
    assert service.requests == []
