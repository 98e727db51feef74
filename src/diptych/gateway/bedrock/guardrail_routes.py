"""ApplyGuardrail, and the guardrails of the control plane, over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from diptych.config import GuardrailSettings
from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.control import ACCOUNT, page
from diptych.gateway.bedrock.failures import error_response
from diptych.gateway.bedrock.guardrails import NO_SUCH, assessment, coverage, usage_units
from diptych.gateway.bedrock.shapes import GuardContent
from diptych.gateway.guardrails.moderation import Moderation
from diptych.gateway.guardrails.policy import DRAFT, Guardrail
from diptych.gateway.intake import parse
from diptych.gateway.refusals import NotFound
from diptych.gateway.responses import json_response
from diptych.gateway.routes import Call, Endpoint, Gateway


class ApplyBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    source: Literal["INPUT", "OUTPUT"]
    content: list[GuardContent]
    output_scope: Literal["INTERVENTIONS", "FULL"] = "INTERVENTIONS"


_decoder = msgspec.json.Decoder(ApplyBody)


def guardrail_routes(gateway: Gateway) -> list[Route]:
    apply = "/guardrail/{guardrail_id:path}/version/{version}/apply"
    return [
        Route(apply, Endpoint(gateway, "POST", apply_guardrail, error_response)),
        Route("/guardrails", Endpoint(gateway, "GET", list_guardrails, error_response)),
        Route("/guardrails/{guardrail_id:path}", Endpoint(gateway, "GET", get_guardrail, error_response)),
    ]


def _found(call: Call, version: str) -> Guardrail:
    found = call.gateway.guardrails.find(unquote(call.http.path_params["guardrail_id"]), version)
    if found is None:
        raise NotFound(NO_SUCH)
    return found


async def apply_guardrail(call: Call) -> Response:
    guardrail = _found(call, unquote(call.http.path_params["version"]))
    body = parse(await call.body(), _decoder)
    moderation = Moderation(guardrail)
    texts = [moderation.read(_text(block, index)) for index, block in enumerate(body.content)]
    return json_response(_applied(moderation, body, texts), call.id)


def _text(block: GuardContent, index: int) -> str:
    if block.text is None or block.image is not None:
        raise InvalidRequest(f"This guardrail assesses text alone. Send a text block at content.{index}, and no image.")
    return block.text.text


def _applied(moderation: Moderation, body: ApplyBody, texts: list[str]) -> dict[str, Any]:
    """The answer. Findings that only report are told in the full scope alone."""
    found = moderation.input
    settings = moderation.guardrail.settings
    outputs: list[str] = texts if found.masked else []
    if found.blocked:
        outputs = [settings.blocked_input if body.source == "INPUT" else settings.blocked_output]
    if body.output_scope == "INTERVENTIONS":
        found = msgspec.structs.replace(found, findings=[one for one in found.findings if one.rule.action != "none"])
    return {
        "usage": usage_units(moderation.guardrail, found.characters),
        "action": "GUARDRAIL_INTERVENED" if moderation.intervened else "NONE",
        "actionReason": moderation.reason,
        "outputs": [{"text": text} for text in outputs],
        "assessments": [assessment(moderation.guardrail, found)],
        "guardrailCoverage": coverage(found),
    }


async def list_guardrails(call: Call) -> Response:
    """The draft of every guardrail, or every version of the one that is asked for."""
    query = call.http.query_params
    known: list[tuple[Guardrail, str]] = []
    if (asked := query.get("guardrailIdentifier")) is None:
        known = [(guardrail, DRAFT) for guardrail in call.gateway.guardrails]
    elif (guardrail := call.gateway.guardrails.find(asked, DRAFT)) is not None:
        known = [(guardrail, DRAFT), (guardrail, guardrail.settings.version)]
    start, size = page(query.get("nextToken", "0"), query.get("maxResults", "100"))
    shown = [_summary(call, guardrail.settings, version) for guardrail, version in known[start : start + size]]
    more = {"nextToken": str(start + size)} if start + size < len(known) else {}
    return json_response({"guardrails": shown, **more}, call.id)


async def get_guardrail(call: Call) -> Response:
    version = call.http.query_params.get("guardrailVersion", DRAFT)
    settings = _found(call, version).settings
    summary = _summary(call, settings, version)
    about = {"guardrailId": summary.pop("id"), "guardrailArn": summary.pop("arn"), **summary}
    messages = {"blockedInputMessaging": settings.blocked_input, "blockedOutputsMessaging": settings.blocked_output}
    return json_response({**about, **messages, **_policies(settings)}, call.id)


def _summary(call: Call, settings: GuardrailSettings, version: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(call.gateway.service.models()[0].created, UTC).isoformat()
    about = {
        "id": settings.id,
        "arn": f"arn:aws:bedrock:{call.gateway.region}:{ACCOUNT}:guardrail/{settings.id}",
        "status": "READY",
        "name": settings.name,
        "version": version,
        "createdAt": created,
        "updatedAt": created,
    }
    return {**about, "description": settings.description} if settings.description else about


def _policies(settings: GuardrailSettings) -> dict[str, Any]:
    words = [{"text": word, "inputAction": "BLOCK", "outputAction": "BLOCK"} for word in settings.words]
    pii = [{"type": entity, "action": action.upper()} for entity, action in settings.pii.items()]
    regexes = [
        {"name": regex.name, "pattern": regex.pattern, "action": regex.action.upper()} for regex in settings.regexes
    ]
    sensitive = {"piiEntities": pii, "regexes": regexes} if pii or regexes else None
    policies = {"wordPolicy": {"words": words} if words else None, "sensitiveInformationPolicy": sensitive}
    return {name: policy for name, policy in policies.items() if policy is not None}
