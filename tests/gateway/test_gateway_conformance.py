"""Requests made from botocore's service model: valid ones are answered in its shapes, invalid ones with its errors."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from botocore.session import Session
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diptych.gateway.app import GatewayApp, build_app
from diptych.gateway.bedrock.support import OPERATIONS
from diptych.gateway.features import Features
from diptych.gateway.guardrails.policy import Guardrails
from support import modelled
from support.gateway_process import GUARDRAILS
from support.modelled import LEFT_OUT, TEXT
from support.scripted import ScriptedService

LLAMA, NOVA, MISTRAL = "meta.llama3-1-8b-instruct-v1:0", "amazon.nova-micro-v1:0", "mistral.mixtral-8x7b-instruct-v0:1"
ARN = "arn:aws:bedrock:us-east-1"
MODELS = (
    "tiny",
    NOVA,
    f"us.{NOVA}",
    f"{ARN}::foundation-model/{NOVA}",
    f"{ARN}:000000000000:inference-profile/us.{LLAMA}",
)
NATIVE: dict[str, dict[str, Any]] = {
    LLAMA: {"prompt": "say hi", "max_gen_len": 5},
    NOVA: {"messages": [{"role": "user", "content": [{"text": "say hi"}]}]},
    MISTRAL: {"prompt": "say hi"},
}
SAID = st.sampled_from(["say hi", "say a longer one", "cut", "together all", 'say <tool_call>{"name": "f"}'])
NAMES = st.sampled_from(["f", "get_weather", "a-b"])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns that alternate, with calls that are answered."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"text": draw(SAID)}]}]
    for number in range(draw(st.integers(0, 2))):
        asked, name = f"t{number}", draw(NAMES)
        call = {"toolUseId": asked, "name": name, "input": draw(st.dictionaries(TEXT, modelled.DOCUMENTS, max_size=2))}
        result = draw(st.sampled_from([{"text": "it rains"}, {"json": {"a": 1}}]))
        content = draw(st.sampled_from([[], [{"text": "I look."}]]))
        turns.append({"role": "assistant", "content": [*content, {"toolUse": call}]})
        answer = {"toolUseId": asked, "content": [result], "status": draw(st.sampled_from(["success", "error"]))}
        turns.append({"role": "user", "content": [{"toolResult": answer}, {"text": draw(SAID)}]})
    return turns


TOOLS = st.lists(NAMES, min_size=1, max_size=3, unique=True).map(
    lambda names: [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}} for name in names]
)
OURS: modelled.Overrides = {
    "ConversationalModelId": st.sampled_from(MODELS),
    "FoundationModelVersionIdentifier": st.sampled_from(MODELS[:3]),
    "Messages": conversations(),
    "ToolConfigurationToolsList": TOOLS,
    "ToolChoice.tool": LEFT_OUT,
    "SystemContentBlock.text": SAID,
    "GuardrailConverseContentBlock.image": LEFT_OUT,
    "GuardrailContentBlock.image": LEFT_OUT,
    "ConverseRequest.promptVariables": LEFT_OUT,
    "ConverseStreamRequest.promptVariables": LEFT_OUT,
    "ConverseRequest.additionalModelRequestFields": st.just({"top_k": 4}),
    "ConverseStreamRequest.additionalModelRequestFields": st.just({"top_k": 4}),
    "ConverseRequestAdditionalModelResponseFieldPathsListMemberString": TEXT.map("/{}".format),
    "ConverseStreamRequestAdditionalModelResponseFieldPathsListMemberString": TEXT.map("/{}".format),
    "OutputConfig.effort": LEFT_OUT,
    "JsonSchemaDefinition.schema": st.just('{"type":"object"}'),
    "InferenceConfiguration.maxTokens": st.integers(1, 40),
    "GuardrailConfiguration": st.just(
        {"guardrailIdentifier": "house", "guardrailVersion": "DRAFT", "trace": "enabled"}
    ),
    "GuardrailStreamConfiguration": st.just(
        {"guardrailIdentifier": "house", "guardrailVersion": "3", "streamProcessingMode": "async"}
    ),
    "CountTokensInput.invokeModel": LEFT_OUT,
    "InvokeModelIdentifier": st.sampled_from(list(NATIVE)),
    "RequestMetadataJson": st.just('{"team":"blue"}'),
    "GuardrailIdentifier": st.just("house"),
    "GuardrailVersion": st.sampled_from(["DRAFT", "3"]),
    "GetFoundationModelIdentifier": st.sampled_from([NOVA, f"{ARN}::foundation-model/{LLAMA}"]),
    "GetFoundationModelRequest.modelIdentifier": st.sampled_from([NOVA, f"{ARN}::foundation-model/{LLAMA}"]),
    "GetFoundationModelAvailabilityRequest.modelId": st.sampled_from([NOVA, LLAMA]),
    "GetInferenceProfileRequest.inferenceProfileIdentifier": st.sampled_from([f"us.{NOVA}"]),
    "PaginationToken": st.sampled_from(["0", "1", "100"]),
    "ToolSpecification.description": TEXT,
}
MODEL = {
    (service, name): Session().get_service_model(service).operation_model(name)
    for service, names in OPERATIONS.items()
    for name in names
}
BODIED = [which for which in MODEL if which[1] in ("Converse", "ConverseStream", "CountTokens", "ApplyGuardrail")]
relaxed = settings(
    deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck), derandomize=True
)


def gateway_app() -> GatewayApp:
    return build_app(ScriptedService(), features=Features(guardrails=Guardrails(GUARDRAILS)))


def parameters_of(which: tuple[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    shape, name = MODEL[which].input_shape, which[1]
    if shape is None or not shape.members:
        return st.just({})
    made = modelled.values(shape, OURS)
    if name.startswith("InvokeModel"):
        return made.map(_with_native)
    return made.map(_talking) if name.startswith(("Converse", "CountTokens")) else made


def _with_native(parameters: dict[str, Any]) -> dict[str, Any]:
    """The body that the model takes; a guardrail needs both of its members."""
    if not {"guardrailIdentifier", "guardrailVersion"} <= set(parameters):
        parameters = {name: value for name, value in parameters.items() if not name.startswith("guardrail")}
    body = msgspec.json.encode(NATIVE[parameters["modelId"]])
    return {**parameters, "body": body, "contentType": "application/json", "accept": "application/json"}


def _talking(parameters: dict[str, Any]) -> dict[str, Any]:
    """What the shapes cannot say: there is a message, and calls need a toolConfig."""
    asked = parameters.get("input", {}).get("converse", parameters)
    asked.setdefault("messages", [{"role": "user", "content": [{"text": "say hi"}]}])
    if any("toolUse" in block for turn in asked["messages"] for block in turn["content"]):
        asked.setdefault("toolConfig", {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}]})
    return parameters


async def sent(app: GatewayApp, request: dict[str, Any], body: bytes) -> httpx.Response:
    query = urlencode({name: str(value) for name, value in request["query_string"].items()})
    target = request["url_path"] + (f"?{query}" if query else "")
    headers = {name: str(value) for name, value in request["headers"].items()}
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as client,
    ):
        return await client.request(request["method"], target, headers=headers, content=body)


def body_of(request: dict[str, Any]) -> bytes:
    body = request["body"]
    return body.encode() if isinstance(body, str) else bytes(body or b"")


async def answered(app: GatewayApp, which: tuple[str, str], data: st.DataObject) -> None:
    """A valid request gets a whole answer."""
    operation, parameters = MODEL[which], data.draw(parameters_of(which))
    request = modelled.serialized(operation, parameters)
    answer = await sent(app, request, body_of(request))
    assert answer.status_code == 200, (parameters, answer.text)
    modelled.read(operation, answer.status_code, answer.headers, answer.content)


async def refused(app: GatewayApp, which: tuple[str, str], data: st.DataObject) -> None:
    """The same with one thing wrong gets a modelled error."""
    operation, parameters = MODEL[which], data.draw(parameters_of(which))
    request = modelled.serialized(operation, parameters)
    body = msgspec.json.decode(body_of(request) or b"{}")
    spoiled, what = modelled.spoiled(body, operation.input_shape, lambda some: data.draw(st.sampled_from(some)))
    answer = await sent(app, request, msgspec.json.encode(spoiled))
    assert answer.status_code == 400, (what, spoiled, answer.text)
    code = modelled.error_of(operation, answer.status_code, answer.headers, answer.content)
    assert code == "ValidationException", what


def test_the_model_allows_what_we_generate() -> None:
    """The strategies cover every operation that is served."""
    assert len(MODEL) == sum(len(names) for names in OPERATIONS.values())
    assert len(BODIED) == 4


@pytest.mark.parametrize("which", MODEL, ids=lambda which: which[1])
@settings(relaxed, max_examples=8)
@given(data=st.data())
async def test_a_valid_request_is_answered_in_the_models_shapes(which: tuple[str, str], data: st.DataObject) -> None:
    app = gateway_app()
    await answered(app, which, data)
    assert len(app.gateway.in_flight) == 0


@pytest.mark.parametrize("which", BODIED, ids=lambda which: which[1])
@settings(relaxed, max_examples=40)
@given(data=st.data())
async def test_an_invalid_request_gets_a_modelled_error(which: tuple[str, str], data: st.DataObject) -> None:
    app = gateway_app()
    await refused(app, which, data)
    assert len(app.gateway.in_flight) == 0
