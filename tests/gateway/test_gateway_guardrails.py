"""Guardrails with boto3: ApplyGuardrail, Converse, streams, native bodies, and what the control plane lists."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from support.process import GatewayProcess

HOUSE = {"guardrailIdentifier": "house", "guardrailVersion": "3"}
HEADERS = dict(HOUSE)
LLAMA, NOVA = "meta.llama3-1-8b-instruct-v1:0", "amazon.nova-micro-v1:0"


def texts(*said: str) -> list[dict[str, Any]]:
    return [{"text": {"text": text}} for text in said]


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def said(answer: dict[str, Any]) -> str:
    return "".join(block["text"] for block in answer["output"]["message"]["content"])


def streamed(bedrock: Any, text: str, **config: str) -> tuple[list[str], str, dict[str, Any]]:
    """(text deltas, stop reason, metadata)"""
    answer = bedrock.converse_stream(modelId="tiny", messages=user(text), guardrailConfig={**HOUSE, **config})
    events = list(answer["stream"])
    deltas = [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]
    stop = next(event["messageStop"]["stopReason"] for event in events if "messageStop" in event)
    return deltas, stop, events[-1]["metadata"]


def refused(call: Any, code: str) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    return str(caught.value)


def test_apply_blocks(bedrock: Any) -> None:
    answer = bedrock.apply_guardrail(**HOUSE, source="INPUT", content=texts("hello", "about Project  Nightingale"))
    assert (answer["action"], answer["actionReason"]) == ("GUARDRAIL_INTERVENED", "Guardrail blocked.")
    assert answer["outputs"] == [{"text": "I may not read this."}]
    (assessment,) = answer["assessments"]
    found = {"match": "Project  Nightingale", "action": "BLOCKED", "detected": True}
    assert assessment["wordPolicy"]["customWords"] == [found]
    assert "sensitiveInformationPolicy" not in assessment
    assert answer["guardrailCoverage"]["textCharacters"] == {"guarded": 31, "total": 31}
    assert answer["usage"]["wordPolicyUnits"] == answer["usage"]["sensitiveInformationPolicyUnits"] == 1


def test_apply_masks_each_block(bedrock: Any) -> None:
    content = texts("mail a@b.com on TKT-1234", "nothing", "call 555-123-4567")
    answer = bedrock.apply_guardrail(**HOUSE, source="OUTPUT", content=content)
    assert answer["actionReason"] == "Guardrail masked."
    assert [one["text"] for one in answer["outputs"]] == ["mail {EMAIL} on {ticket}", "nothing", "call 555-123-4567"]
    sensitive = answer["assessments"][0]["sensitiveInformationPolicy"]
    assert sensitive["piiEntities"] == [{"match": "a@b.com", "type": "EMAIL", "action": "ANONYMIZED", "detected": True}]
    assert sensitive["regexes"][0]["regex"] == r"TKT-\d{4,8}"
    full = bedrock.apply_guardrail(**HOUSE, source="OUTPUT", content=content, outputScope="FULL")
    entities = full["assessments"][0]["sensitiveInformationPolicy"]["piiEntities"]
    assert [one["action"] for one in entities] == ["ANONYMIZED", "NONE"]


def test_apply_lets_pass_and_refuses(bedrock: Any) -> None:
    answer = bedrock.apply_guardrail(**{**HOUSE, "guardrailVersion": "DRAFT"}, source="INPUT", content=texts("fine"))
    assert (answer["action"], answer["outputs"], answer["actionReason"]) == ("NONE", [], "No action.")
    asked = {"source": "INPUT", "content": texts("x")}
    for wrong in ({"guardrailIdentifier": "nope"}, {"guardrailVersion": "9"}):
        refused(lambda wrong=wrong: bedrock.apply_guardrail(**{**HOUSE, **wrong}, **asked), "ResourceNotFoundException")
    image = [{"image": {"format": "png", "source": {"bytes": b"x"}}}]
    refused(lambda: bedrock.apply_guardrail(**HOUSE, source="INPUT", content=image), "ValidationException")
    refused(lambda: bedrock.apply_guardrail(**HOUSE, source="BOTH", content=texts("x")), "ValidationException")


def test_converse_input_blocked(bedrock: Any, gateway: GatewayProcess) -> None:
    before = gateway.health()["ended"]
    answer = bedrock.converse(
        modelId="tiny", messages=user("say damn"), guardrailConfig={**HOUSE, "trace": "enabled"}
    )  # fmt: skip
    assert said(answer) == "I may not read this."
    assert answer["stopReason"] == "guardrail_intervened"
    assert answer["usage"] == {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
    trace = answer["trace"]["guardrail"]
    assert trace["inputAssessment"]["house"]["wordPolicy"]["customWords"][0]["match"] == "damn"
    assert "outputAssessments" not in trace
    assert gateway.health()["ended"] == before


def test_converse_input_masked_is_what_the_model_sees(bedrock: Any) -> None:
    echo = "say it was a@b.com"
    answer = bedrock.converse(modelId="tiny", messages=user(echo), guardrailConfig=HOUSE)
    assert said(answer) == "it was {EMAIL}"
    assert answer["stopReason"] == "end_turn"
    assert "trace" not in answer


def test_only_guard_content_is_judged_where_there_is_some(bedrock: Any) -> None:
    blocks = [{"text": "say a damn thing"}, {"guardContent": {"text": {"text": "harmless"}}}]
    content = {"messages": [{"role": "user", "content": blocks}], "modelId": "tiny"}
    answer = bedrock.converse(**content, guardrailConfig={**HOUSE, "trace": "enabled"})
    found = answer["trace"]["guardrail"]["inputAssessment"]["house"]
    assert "wordPolicy" not in found
    assert found["invocationMetrics"]["guardrailCoverage"]["textCharacters"] == {"guarded": 8, "total": 24}
    assert said(answer) == "I may not say this."


def test_converse_output(bedrock: Any) -> None:
    blocked = bedrock.converse(
        modelId="tiny", messages=user("say well, da\nsay mn it"), guardrailConfig={**HOUSE, "trace": "enabled_full"}
    )
    assert (said(blocked), blocked["stopReason"]) == ("I may not say this.", "guardrail_intervened")
    trace = blocked["trace"]["guardrail"]
    assert trace["modelOutput"] == ["well, damn it"]
    assert trace["outputAssessments"]["house"][0]["wordPolicy"]["customWords"][0]["action"] == "BLOCKED"
    masked = bedrock.converse(modelId="tiny", messages=user("say TKT-\nsay 12345 is it"), guardrailConfig=HOUSE)
    assert (said(masked), masked["stopReason"]) == ("{ticket} is it", "guardrail_intervened")


def test_a_guardrail_that_does_not_exist_or_is_half_named(bedrock: Any) -> None:
    for config in ({**HOUSE, "guardrailIdentifier": "nope"}, {**HOUSE, "guardrailVersion": "9"}):
        asked = {"modelId": "tiny", "messages": user("x"), "guardrailConfig": config}
        text = refused(lambda asked=asked: bedrock.converse(**asked), "ValidationException")
        assert "The guardrail identifier or version provided in the request does not exist." in text
    half = {"modelId": "tiny", "messages": user("x"), "guardrailConfig": {"guardrailIdentifier": "house"}}
    refused(lambda: bedrock.converse(**half), "ValidationException")
    native = {"modelId": LLAMA, "body": b'{"prompt":"x"}'}
    refused(
        lambda: bedrock.invoke_model(**native, guardrailIdentifier="no", guardrailVersion="1"), "ValidationException"
    )
    empty = {"guardrailIdentifier": "", "guardrailVersion": ""}
    assert (
        bedrock.converse(modelId="tiny", messages=user("say damn"), guardrailConfig=empty)["stopReason"] == "end_turn"
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_stream_blocked(bedrock: Any, gateway: GatewayProcess, mode: str) -> None:
    script = "say a harmless beginning of some length, then da\nsay mn it\nforever more and "
    deltas, stop, metadata = streamed(bedrock, script, streamProcessingMode=mode, trace="enabled")
    assert deltas[-1] == "I may not say this."
    before = "".join(deltas[:-1])
    assert stop == "guardrail_intervened"
    assert metadata["trace"]["guardrail"]["actionReason"] == "Guardrail blocked."
    assert metadata["usage"]["outputTokens"] > 0
    if mode == "sync":
        assert "a harmless beginning of some length, then damn it".startswith(before)
    else:
        assert before.startswith("a harmless beginning of some length, then damn it")
    assert gateway.health()["running"] == 0


def test_stream_masked_and_not(bedrock: Any) -> None:
    script = "say to a@b.\nsay com and no further, for TKT-\nsay 1234 only"
    deltas, stop, _ = streamed(bedrock, script, streamProcessingMode="sync")
    assert ("".join(deltas), stop) == ("to {EMAIL} and no further, for {ticket} only", "guardrail_intervened")
    deltas, stop, _ = streamed(bedrock, script, streamProcessingMode="async")
    assert ("".join(deltas), stop) == ("to a@b.com and no further, for TKT-1234 only", "end_turn")
    deltas, stop, metadata = streamed(bedrock, "say fine")
    assert ("".join(deltas), stop) == ("fine", "end_turn")
    assert "trace" not in metadata


def test_stream_input_blocked(bedrock: Any) -> None:
    deltas, stop, metadata = streamed(bedrock, "say damn", trace="enabled")
    assert (deltas, stop) == (["I may not read this."], "guardrail_intervened")
    assert metadata["usage"]["totalTokens"] == 0


def test_calls_pass_and_text_around_them_is_judged(bedrock: Any) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"to": "a@b.com"}}</tool_call>'
    tools = {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}]}
    answer = bedrock.converse(
        modelId="tiny", messages=user("say to TKT-\nsay 1234 " + call.replace("a@b.com", "a(at)b")), toolConfig=tools,
        guardrailConfig=HOUSE,
    )  # fmt: skip
    assert answer["stopReason"] == "tool_use"
    first, use = answer["output"]["message"]["content"]
    assert first["text"].startswith("to {ticket}")
    assert use["toolUse"]["input"] == {"to": "a(at)b"}


def body(text: str, model: str) -> bytes:
    if model == LLAMA:
        return json.dumps({"prompt": text}).encode()
    key = [{"text": text}] if model == NOVA else text
    return json.dumps({"messages": [{"role": "user", "content": key}]}).encode()


@pytest.mark.parametrize("model", [LLAMA, NOVA, "tiny"])
def test_native_bodies(bedrock: Any, model: str) -> None:
    def invoked(text: str, **more: str) -> dict[str, Any]:
        answer = bedrock.invoke_model(modelId=model, body=body(text, model), **HEADERS, **more)
        return json.loads(answer["body"].read())

    blocked = invoked("say damn", trace="ENABLED")
    assert blocked["amazon-bedrock-guardrailAction"] == "INTERVENED"
    assert "I may not read this." in json.dumps(blocked)
    assert blocked["amazon-bedrock-trace"]["guardrail"]["actionReason"] == "Guardrail blocked."
    fine = invoked("say fine")
    assert fine["amazon-bedrock-guardrailAction"] == "NONE"
    assert "amazon-bedrock-trace" not in fine
    assert "to {EMAIL}" in json.dumps(invoked("say to a@b.com"))
    assert "I may not say this." in json.dumps(invoked("say da\nsay mn"))


@pytest.mark.parametrize("model", [LLAMA, NOVA, "tiny"])
def test_native_streams(bedrock: Any, model: str) -> None:
    answer = bedrock.invoke_model_with_response_stream(
        modelId=model, body=body("say x da\nsay mn\nforever  and", model), **HEADERS, trace="ENABLED"
    )
    chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    assert any("I may not say this." in json.dumps(chunk) for chunk in chunks)
    assert chunks[-1]["amazon-bedrock-guardrailAction"] == "INTERVENED"
    assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0


def test_a_native_body_chooses_the_mode(bedrock: Any) -> None:
    def asked(mode: str) -> list[str]:
        config = {"amazon-bedrock-guardrailConfig": {"streamProcessingMode": mode}}
        raw = json.dumps({"prompt": "say mail a@b.\nsay com now", **config})
        answer = bedrock.invoke_model_with_response_stream(modelId=LLAMA, body=raw, **HEADERS)
        return [json.loads(event["chunk"]["bytes"])["generation"] for event in answer["body"]]

    assert "".join(asked("SYNCHRONOUS")) == "mail {EMAIL} now"
    assert "".join(asked("ASYNCHRONOUS")) == "mail a@b.com now"
    refused(lambda: asked("NEVER"), "ValidationException")
    refused(lambda: bedrock.invoke_model(modelId=LLAMA, body=b"no json", **HEADERS), "ValidationException")


def test_control_plane(gateway: GatewayProcess) -> None:
    control = boto3.client(
        "bedrock", endpoint_url=gateway.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    (listed,) = control.list_guardrails()["guardrails"]
    assert (listed["id"], listed["version"], listed["status"], listed["name"]) == (
        "house", "DRAFT", "READY", "house-rules",
    )  # fmt: skip
    versions = control.list_guardrails(guardrailIdentifier=listed["arn"])["guardrails"]
    assert [one["version"] for one in versions] == ["DRAFT", "3"]
    first = control.list_guardrails(guardrailIdentifier="house", maxResults=1)
    assert len(first["guardrails"]) == 1
    assert first["nextToken"]
    assert control.list_guardrails(guardrailIdentifier="nope")["guardrails"] == []
    found = control.get_guardrail(guardrailIdentifier="house", guardrailVersion="3")
    assert found["blockedOutputsMessaging"] == "I may not say this."
    assert {word["text"] for word in found["wordPolicy"]["words"]} == {"project nightingale", "damn"}
    assert found["sensitiveInformationPolicy"]["piiEntities"][0] == {"type": "EMAIL", "action": "ANONYMIZE"}
    refused(lambda: control.get_guardrail(guardrailIdentifier="nope"), "ResourceNotFoundException")
    control.close()
