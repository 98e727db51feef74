"""Guardrails in Bedrock's shapes: which one a request names, its texts judged, and what was found as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import violated
from diptych.gateway.bedrock.shapes import (
    ContentBlock,
    ConverseBody,
    GuardContent,
    GuardrailConfig,
    Message,
    SystemBlock,
)
from diptych.gateway.generation import Generation
from diptych.gateway.guardrails.moderation import Answered, Assessment, Guarded, Moderation
from diptych.gateway.guardrails.policy import Finding, Guardrail, Guardrails
from diptych.gateway.refusals import MalformedBody
from diptych.gateway.responses import to_json

NO_SUCH = "The guardrail identifier or version provided in the request does not exist."
_TAKEN = {"block": "BLOCKED", "anonymize": "ANONYMIZED", "none": "NONE"}
_UNIT_CHARACTERS = 1000
_NATIVE_CONFIG = "amazon-bedrock-guardrailConfig"


def named(guardrails: Guardrails, identifier: str | None, version: str | None) -> Guardrail | None:
    """The guardrail that a request names, None when it names none. Raises InvalidRequest."""
    if not identifier and not version:
        return None
    if not (identifier and version):
        raise InvalidRequest(NO_SUCH)
    found = guardrails.find(identifier, version)
    if found is None:
        raise InvalidRequest(NO_SUCH)
    return found


def moderation_of(guardrails: Guardrails, config: GuardrailConfig | None, operation: str) -> Moderation | None:
    """The moderation that ``guardrailConfig`` asks for. Raises InvalidRequest."""
    if config is None:
        return None
    if config.stream_processing_mode is not None and operation != "ConverseStream":
        raise InvalidRequest("streamProcessingMode is a member of ConverseStream's guardrailConfig alone. Remove it.")
    found = named(guardrails, config.guardrail_identifier, config.guardrail_version)
    if found is None:
        return None
    return Moderation(found, trace=config.trace, asynchronous=config.stream_processing_mode == "async")


def guarded_body(body: ConverseBody, moderation: Moderation) -> ConverseBody:
    """The body as the model may see it. Where there is a guardContent, it alone is judged; else every text block."""
    contents = [block.guard_content for message in body.messages for block in message.content]
    marked = any(content is not None for content in (*contents, *(block.guard_content for block in body.system)))
    messages = [_message(message, moderation, marked) for message in body.messages]
    system = [_system(block, moderation) for block in body.system]
    return msgspec.structs.replace(body, messages=messages, system=system)


def _message(message: Message, moderation: Moderation, marked: bool) -> Message:
    return msgspec.structs.replace(message, content=[_block(block, moderation, marked) for block in message.content])


def _block(block: ContentBlock, moderation: Moderation, marked: bool) -> ContentBlock:
    if block.text is not None:
        return msgspec.structs.replace(block, text=moderation.read(block.text, guarded=not marked))
    if block.guard_content is not None:
        return msgspec.structs.replace(block, guard_content=_content(block.guard_content, moderation))
    return block


def _system(block: SystemBlock, moderation: Moderation) -> SystemBlock:
    if block.guard_content is None:
        return block
    return msgspec.structs.replace(block, guard_content=_content(block.guard_content, moderation))


def _content(content: GuardContent, moderation: Moderation) -> GuardContent:
    if content.text is None:
        return content
    text = msgspec.structs.replace(content.text, text=moderation.read(content.text.text))
    return msgspec.structs.replace(content, text=text)


class _NativeConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    stream_processing_mode: str = "SYNCHRONOUS"


def guarded_native(raw: bytes, moderation: Moderation) -> bytes:
    """A native body as the model may see it: its ``prompt`` and the texts of its messages judged.

    Raises InvalidRequest, and MalformedBody for what is no JSON object.
    """
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any])
        config = msgspec.convert(body.pop(_NATIVE_CONFIG, {}), _NativeConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(str(error)) from None
    mode = config.stream_processing_mode.lower()
    if mode not in ("synchronous", "asynchronous"):
        allowed = "Member must satisfy enum value set: [SYNCHRONOUS, ASYNCHRONOUS]"
        raise violated(config.stream_processing_mode, f"{_NATIVE_CONFIG}.streamProcessingMode", allowed)
    moderation.asynchronous = mode == "asynchronous"
    if isinstance(body.get("prompt"), str):
        body["prompt"] = moderation.read(body["prompt"])
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and "content" in message:
            message["content"] = _native_content(message["content"], moderation)
    return to_json(body)


def _native_content(content: Any, moderation: Moderation) -> Any:
    if isinstance(content, str):
        return moderation.read(content)
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            block["text"] = moderation.read(block["text"])
    return content


def moderation_in(generation: Generation) -> Moderation | None:
    """The guardrail that a generation runs under."""
    return generation.moderation if isinstance(generation, (Guarded, Answered)) else None


def trace_of(moderation: Moderation) -> dict[str, Any]:
    """``trace.guardrail``: what was found in the input and, if the model spoke, in the output."""
    guardrail = moderation.guardrail
    known = guardrail.settings.id
    trace: dict[str, Any] = {"inputAssessment": {known: assessment(guardrail, moderation.input)}}
    if moderation.output is not None:
        trace["modelOutput"] = [moderation.model_said]
        trace["outputAssessments"] = {known: [assessment(guardrail, moderation.output)]}
    return {"guardrail": {**trace, "actionReason": moderation.reason}}


def assessment(guardrail: Guardrail, found: Assessment) -> dict[str, Any]:
    """GuardrailAssessment."""
    settings = guardrail.settings
    policies = {
        "wordPolicy": {"customWords": [_entry(one, "match") for one in _of(found.findings, "word")]},
        "sensitiveInformationPolicy": {
            "piiEntities": [_entry(one, "type") for one in _of(found.findings, "pii")],
            "regexes": [_entry(one, "name") for one in _of(found.findings, "regex")],
        },
    }
    return {
        **{name: policy for name, policy in policies.items() if any(policy.values())},
        "invocationMetrics": {
            "usage": usage_units(guardrail, found.characters),
            "guardrailCoverage": coverage(found),
        },
        "appliedGuardrailDetails": {
            "guardrailId": settings.id, "guardrailVersion": settings.version, "guardrailOwnership": "SELF",
        },
    }  # fmt: skip


def _of(findings: Sequence[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.rule.kind == kind]


def _entry(finding: Finding, name: str) -> dict[str, Any]:
    entry = {"match": finding.match, "action": _TAKEN[finding.rule.action], "detected": True}
    if name != "match":
        entry[name] = finding.rule.name
    return {**entry, "regex": finding.rule.regex} if finding.rule.regex is not None else entry


def coverage(found: Assessment) -> dict[str, Any]:
    return {"textCharacters": {"guarded": found.characters, "total": found.total}}


def usage_units(guardrail: Guardrail, characters: int) -> dict[str, int]:
    """Text units of each policy: a thousand characters or less each. Patterns are free, as in Bedrock."""
    units = math.ceil(characters / _UNIT_CHARACTERS)
    kinds = {rule.kind for rule in guardrail.rules}
    return {
        "topicPolicyUnits": 0,
        "contentPolicyUnits": 0,
        "wordPolicyUnits": units if "word" in kinds else 0,
        "sensitiveInformationPolicyUnits": units if "pii" in kinds else 0,
        "sensitiveInformationPolicyFreeUnits": units if "regex" in kinds else 0,
        "contextualGroundingPolicyUnits": 0,
    }
