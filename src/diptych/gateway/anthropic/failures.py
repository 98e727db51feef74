"""The error tree in Anthropic's shape: ``{"type": "error", "error": {type, message}}``. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from diptych import errors
from diptych.gateway.refusals import BodyTooLarge, Forbidden, MethodNotAllowed, ModelForbidden, NotFound
from diptych.gateway.responses import json_response, to_json


class Failure(msgspec.Struct, frozen=True):
    status: int
    type: str


_INTERNAL = Failure(500, "api_error")
_TABLE: tuple[tuple[type[Exception], Failure], ...] = (
    (ModelForbidden, Failure(403, "permission_error")),
    (Forbidden, Failure(401, "authentication_error")),
    (NotFound, Failure(404, "not_found_error")),
    (MethodNotAllowed, Failure(405, "invalid_request_error")),
    (BodyTooLarge, Failure(413, "request_too_large")),
    (errors.ModelNotFound, Failure(404, "not_found_error")),
    (errors.Overloaded, Failure(429, "rate_limit_error")),
    (errors.RequestError, Failure(400, "invalid_request_error")),
    (errors.DeadlineExceeded, Failure(504, "timeout_error")),
    (errors.WorkerLost, Failure(529, "overloaded_error")),
)


def failure_of(error: Exception) -> Failure:
    """Anthropic's class of ``error``; an internal one where the tree knows no better."""
    return next((failure for kind, failure in _TABLE if isinstance(error, kind)), _INTERNAL)


def _body(error: Exception) -> dict[str, Any]:
    known = isinstance(error, errors.DiptychError)
    message = str(error) if known else "Internal server error"
    return {"type": "error", "error": {"type": failure_of(error).type, "message": message}}


def error_response(error: Exception, request_id: str) -> Response:
    """The answer to a request that failed before its response began."""
    headers = {"request-id": request_id}
    return json_response({**_body(error), "request_id": request_id}, request_id, failure_of(error).status, headers)


def error_event(error: Exception) -> bytes:
    """The event that ends a stream that has begun."""
    return b"event: error\ndata: " + to_json(_body(error)) + b"\n\n"
