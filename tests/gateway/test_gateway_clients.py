"""boto3, openai and httpx over h2 against the real server process."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from botocore.exceptions import ClientError, EventStreamError

from support.process import GatewayProcess

NOVA = "amazon.nova-micro-v1:0"


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def collect(response: dict[str, Any]) -> tuple[str, list[str], dict[str, Any]]:
    events = list(response["stream"])
    response["stream"].close()
    kinds = [next(iter(event)) for event in events]
    text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
    return text, kinds, events[-1]["metadata"]


def test_converse(bedrock: Any) -> None:
    answer = bedrock.converse(
        modelId=NOVA,
        messages=user("say the wörld 🎉"),
        system=[{"text": "Be brief."}],
        performanceConfig={"latency": "optimized"},
        serviceTier={"type": "priority"},
    )
    assert answer["output"]["message"] == {"role": "assistant", "content": [{"text": "the wörld 🎉"}]}
    assert answer["stopReason"] == "end_turn"
    usage = answer["usage"]
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]
    assert answer["performanceConfig"] == {"latency": "optimized"}
    assert answer["serviceTier"] == {"type": "priority"}


def test_converse_stream_sends_an_event_a_token_in_bedrocks_order(bedrock: Any) -> None:
    response = bedrock.converse_stream(
        modelId=NOVA, messages=user("say abcdef"), performanceConfig={"latency": "optimized"}
    )
    text, kinds, metadata = collect(response)
    assert text == "abcdef"
    assert kinds == [
        "messageStart", *["contentBlockDelta"] * 6, "contentBlockStop", "messageStop", "metadata"
    ]  # fmt: skip
    assert metadata["usage"]["outputTokens"] == 7
    assert metadata["performanceConfig"] == {"latency": "optimized"}


@pytest.mark.parametrize(
    ("model_id", "text"),
    [
        ("tiny", "hello"),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0", "hello"),
    ],
)
def test_a_model_has_several_names(bedrock: Any, model_id: str, text: str) -> None:
    answer = bedrock.converse(modelId=model_id, messages=user("say hello"))
    assert answer["output"]["message"]["content"][0]["text"] == text


def test_stop_sequence_ends_the_stream_and_the_generation(bedrock: Any, gateway: GatewayProcess) -> None:
    response = bedrock.converse_stream(
        modelId=NOVA, messages=user("forever one.two!"), inferenceConfig={"stopSequences": ["two!o"]}
    )
    events = list(response["stream"])
    response["stream"].close()
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == "one."
    assert {"messageStop": {"stopReason": "stop_sequence"}} in events
    record = httpx.get(f"{gateway.url}/diptych/requests?limit=1").json()["requests"][0]
    assert record["status"] == "finished"
    assert record["output_tokens"] == events[-1]["metadata"]["usage"]["outputTokens"] == len("one.two!o")


def test_max_tokens_and_a_full_context_are_told_apart(bedrock: Any) -> None:
    short = bedrock.converse(modelId=NOVA, messages=user("say abcdef"), inferenceConfig={"maxTokens": 3})
    assert (short["output"]["message"]["content"][0]["text"], short["stopReason"]) == ("abc", "max_tokens")
    full = bedrock.converse(modelId="short", messages=user("forever x"), inferenceConfig={"maxTokens": 4000})
    assert full["stopReason"] == "model_context_window_exceeded"
    assert full["usage"]["totalTokens"] == 64


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("raise Overloaded", 429, "ThrottlingException"),
        ("raise WorkerLost", 503, "ServiceUnavailableException"),
        ("raise EngineError", 424, "ModelErrorException"),
        ("raise DeadlineExceeded", 408, "ModelTimeoutException"),
        ("raise CorruptKV", 500, "InternalServerException"),
        ("raise Bug", 500, "InternalServerException"),
        ("vanish", 424, "ModelErrorException"),
    ],
)
@pytest.mark.parametrize("operation", ["converse", "converse_stream"])
def test_errors_before_the_first_token(bedrock: Any, operation: str, script: str, status: int, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        getattr(bedrock, operation)(modelId=NOVA, messages=user(script))
    response = caught.value.response
    assert response["Error"]["Code"] == code
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["ResponseMetadata"]["RequestId"]
    assert "secret" not in response["Error"]["Message"]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise Overloaded", "throttlingException"),
        ("raise WorkerLost", "serviceUnavailableException"),
        ("raise EngineError", "modelStreamErrorException"),
        ("raise Bug", "internalServerException"),
        ("vanish", "modelStreamErrorException"),
    ],
)
def test_errors_within_a_stream_are_its_last_event(bedrock: Any, script: str, code: str) -> None:
    response = bedrock.converse_stream(modelId=NOVA, messages=user(f"say abc\n{script}"))
    seen = []
    with pytest.raises(EventStreamError) as caught:
        seen.extend(response["stream"])
    response["stream"].close()
    assert caught.value.response["Error"]["Code"] == code
    assert "secret" not in caught.value.response["Error"]["Message"]


def test_the_throttling_text_is_the_one_that_clients_match(bedrock: Any) -> None:
    with pytest.raises(bedrock.exceptions.ThrottlingException) as caught:
        bedrock.converse(modelId=NOVA, messages=user("raise Overloaded"))
    message = caught.value.response["Error"]["Message"]
    assert message == "Too many requests, please wait before trying again."


def test_record_of_a_response(bedrock: Any, gateway: GatewayProcess) -> None:
    answer = bedrock.converse(modelId=NOVA, messages=user("say hello"))
    request_id = answer["ResponseMetadata"]["RequestId"]
    record = httpx.get(f"{gateway.url}/diptych/requests/{request_id}").json()
    assert (record["id"], record["operation"], record["output_tokens"]) == (request_id, "Converse", 2)


def test_chat_completion(chat: Any) -> None:
    answer = chat.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "Be brief."}, *ask("say the wörld 🎉")]
    )
    assert answer.choices[0].message.content == "the wörld 🎉"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_chat_stream(chat: Any) -> None:
    chunks = list(
        chat.chat.completions.create(
            model="tiny", messages=ask("say abc🎉"), stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert deltas == ["", "a", "b", "c", "🎉", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 8


def test_chat_stop_string(chat: Any) -> None:
    answer = chat.chat.completions.create(model="tiny", messages=ask("forever one.two!"), stop=["two!o", "zzz"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one.", "stop")
    assert answer.usage.completion_tokens == len("one.two!o")


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(chat: Any, stream: bool) -> None:
    made = chat.chat.completions.create(model="tiny", messages=ask("echo sampling.seed"), n=3, seed=40, stream=stream)
    if stream:
        texts = {0: "", 1: "", 2: ""}
        for chunk in made:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in made.choices}
        assert made.usage.completion_tokens == 9
    assert texts == {0: "40", 1: "41", 2: "42"}


def test_logprobs(chat: Any) -> None:
    made = chat.chat.completions.create(model="tiny", messages=ask("say é"), logprobs=True, top_logprobs=2)
    content = made.choices[0].logprobs.content
    assert [token.bytes for token in content[:2]] == [[0xC3], [0xA9]]
    assert [len(token.top_logprobs) for token in content] == [2, 2, 2]
    chunks = list(
        chat.chat.completions.create(model="tiny", messages=ask("say é"), logprobs=True, top_logprobs=2, stream=True)
    )
    given = [chunk.choices[0].logprobs for chunk in chunks]
    streamed = [token for logprobs in given if logprobs for token in logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in content]


@pytest.mark.parametrize(
    ("script", "kind", "status"),
    [
        ("raise Overloaded", openai.RateLimitError, 429),
        ("raise WorkerLost", openai.InternalServerError, 503),
        ("raise EngineError", openai.InternalServerError, 500),
        ("raise DeadlineExceeded", openai.InternalServerError, 504),
        ("raise Bug", openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_chat_errors_before_the_first_token(
    chat: Any, script: str, kind: type[Exception], status: int, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        chat.chat.completions.create(model="tiny", messages=ask(script), stream=stream)
    assert caught.value.status_code == status  # type: ignore[attr-defined]
    assert "secret" not in str(caught.value)


def test_chat_error_within_a_stream(chat: Any) -> None:
    stream = chat.chat.completions.create(model="tiny", messages=ask("say ab\nraise EngineError"), stream=True)
    chunks: list[Any] = []
    with pytest.raises(openai.APIError, match="the scripted EngineError"):
        chunks.extend(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "ab"


def test_unknown_model(chat: Any, bedrock: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Served are: .*tiny") as caught:
        chat.chat.completions.create(model="nope", messages=ask("x"))
    assert caught.value.code == "model_not_found"
    with pytest.raises(bedrock.exceptions.ValidationException) as refused:
        bedrock.converse(modelId="nope", messages=user("x"))
    assert refused.value.response["Error"]["Message"] == "The provided model identifier is invalid."


def test_models(chat: Any) -> None:
    assert {model.id for model in chat.models.list()} >= {"tiny", NOVA}
    assert chat.models.retrieve(NOVA).id == NOVA
    with pytest.raises(openai.NotFoundError):
        chat.models.retrieve("nope")


def test_h2_prior_knowledge_with_an_encoded_id(gateway: GatewayProcess) -> None:
    path = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2Famazon.nova-micro-v1%3A0/converse"
    with httpx.Client(http1=False, http2=True, base_url=gateway.url) as client:
        answer = client.post(path, content=json.dumps({"messages": user("say hello"), "system": []}))
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
    assert answer.json()["output"]["message"]["content"] == [{"text": "hello"}]
    assert answer.headers["x-amzn-requestid"] == answer.headers["x-request-id"]
