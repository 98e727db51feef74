"""The operator's own routes: health, and the records that prove what happened to each request."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import InvalidRequest
from diptych.gateway.intake import natural
from diptych.gateway.metrics import CONTENT_TYPE
from diptych.gateway.openai.failures import error_response
from diptych.gateway.refusals import NotFound
from diptych.gateway.responses import id_headers, json_response
from diptych.gateway.routes import Call, Endpoint, Gateway

_MOST_RECORDS = 1000


def operation_routes(gateway: Gateway) -> list[Route]:
    return [
        Route(path, Endpoint(gateway, "GET", handler, error_response, guarded=guarded))
        for path, handler, guarded in (
            ("/health", health, False),
            ("/metrics", metrics, True),
            ("/diptych/usage", usage, True),
            ("/diptych/requests", list_records, True),
            ("/diptych/requests/{request_id}", get_record, True),
        )
    ]


async def health(call: Call) -> Response:
    """200 when the fleet can serve, else 503; the body says which part is missing."""
    state = call.gateway.service.health()
    return json_response(state, call.id, 200 if state.get("status") == "ok" else 503)


async def metrics(call: Call) -> Response:
    return Response(call.gateway.metrics.text(), headers=id_headers(call.id), media_type=CONTENT_TYPE)


async def usage(call: Call) -> Response:
    """Tokens and cost by day, key and model: ``?day=2026-11-24``, ``?key=NAME``."""
    query = call.http.query_params
    return json_response(call.gateway.ledger.report(query.get("key"), query.get("day")), call.id)


async def list_records(call: Call) -> Response:
    asked = call.http.query_params.get("limit", "50")
    limit = natural(asked)
    if limit is None or not 1 <= limit <= _MOST_RECORDS:
        raise InvalidRequest(f"'limit' is '{asked}'; it must be a number from 1 to {_MOST_RECORDS}.")
    return json_response({"requests": call.gateway.service.records(limit)}, call.id)


async def get_record(call: Call) -> Response:
    request_id = call.http.path_params["request_id"]
    record = call.gateway.service.record(request_id)
    if record is None:
        raise NotFound(f"There is no record of request '{request_id}'. GET /diptych/requests lists the latest.")
    return json_response(record, call.id)
