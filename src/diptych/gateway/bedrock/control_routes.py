"""Bedrock's control plane over HTTP. Its paths do not collide with the runtime's, so one address serves both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import ModelNotFound
from diptych.gateway.bedrock.control import ACCOUNT, Plane, matching, page
from diptych.gateway.bedrock.failures import error_response
from diptych.gateway.catalog import bare_id, find_model
from diptych.gateway.refusals import NotFound
from diptych.gateway.responses import json_response
from diptych.gateway.routes import Call, Endpoint, Gateway

EMPTY_LISTS = {
    "/custom-models": "modelSummaries",
    "/imported-models": "modelSummaries",
    "/prompt-routers": "promptRouterSummaries",
    "/provisioned-model-throughputs": "provisionedModelSummaries",
    "/marketplace-model/endpoints": "marketplaceModelEndpoints",
    "/model-customization/custom-model-deployments": "modelDeploymentSummaries",
}
"""What is never configured here, and the member that lists it."""


def control_routes(gateway: Gateway) -> list[Route]:
    handlers: dict[str, Callable[[Call], Awaitable[Response]]] = {
        "/foundation-models": list_foundation_models,
        "/foundation-models/{model_id:path}": get_foundation_model,
        "/foundation-model-availability/{model_id:path}": get_availability,
        "/inference-profiles": list_inference_profiles,
        "/inference-profiles/{profile_id:path}": get_inference_profile,
        "/logging/modelinvocations": get_logging_configuration,
        **{path: _empty(member) for path, member in EMPTY_LISTS.items()},
    }
    return [Route(path, Endpoint(gateway, "GET", handler, error_response)) for path, handler in handlers.items()]


def _plane(call: Call) -> Plane:
    return Plane(tuple(call.gateway.service.models()), call.gateway.region)


def _known(call: Call, parameter: str) -> str:
    """The id in the path, without ARN and region, if it is served. Raises NotFound."""
    asked = unquote(call.http.path_params[parameter])
    try:
        find_model(_plane(call).models, asked)
    except ModelNotFound as error:
        raise NotFound(str(error)) from None
    return bare_id(asked)


async def list_foundation_models(call: Call) -> Response:
    plane = _plane(call)
    summaries = [plane.summary(name) for name, _ in plane.foundation_models()]
    return json_response({"modelSummaries": matching(summaries, dict(call.http.query_params))}, call.id)


async def get_foundation_model(call: Call) -> Response:
    return json_response({"modelDetails": _plane(call).summary(_known(call, "model_id"))}, call.id)


async def get_availability(call: Call) -> Response:
    available = {
        "modelId": _known(call, "model_id"),
        "agreementAvailability": {"status": "AVAILABLE"},
        "authorizationStatus": "AUTHORIZED",
        "entitlementAvailability": "AVAILABLE",
        "regionAvailability": "AVAILABLE",
    }
    return json_response(available, call.id)


async def list_inference_profiles(call: Call) -> Response:
    plane, query = _plane(call), call.http.query_params
    names = [] if query.get("type") == "APPLICATION" else plane.profiled()
    start, size = page(query.get("nextToken", "0"), query.get("maxResults", "100"))
    body: dict[str, Any] = {"inferenceProfileSummaries": [plane.profile(name) for name in names[start : start + size]]}
    if start + size < len(names):
        body["nextToken"] = str(start + size)
    return json_response(body, call.id)


async def get_inference_profile(call: Call) -> Response:
    return json_response(_plane(call).profile(_known(call, "profile_id")), call.id)


async def get_logging_configuration(call: Call) -> Response:
    """The file that is written to stands where AWS has a log group."""
    log = call.gateway.features.invocation_log
    if log is None:
        return json_response({}, call.id)
    kinds = {"text": True, "image": False, "embedding": False, "video": False, "audio": False}
    config = {
        "cloudWatchConfig": {"logGroupName": log.path[-512:], "roleArn": f"arn:aws:iam::{ACCOUNT}:role/diptych"},
        **{f"{kind}DataDeliveryEnabled": on for kind, on in kinds.items()},
    }
    return json_response({"loggingConfig": config}, call.id)


def _empty(member: str) -> Callable[[Call], Awaitable[Response]]:
    async def listed(call: Call) -> Response:
        return json_response({member: []}, call.id)

    return listed
