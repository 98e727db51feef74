"""The error tree in OpenAI's shape: ``{"error": {message, type, param, code}}``. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from diptych import errors
from diptych.gateway.openai.parameters import InvalidParameter
from diptych.gateway.refusals import BodyTimeout, BodyTooLarge, Forbidden, MethodNotAllowed, ModelForbidden, NotFound
from diptych.gateway.responses import json_response, to_json


class Failure(msgspec.Struct, frozen=True):
    status: int
    type: str
    code: str | None = None


_NO_ACCESS = Failure(403, "invalid_request_error", "model_not_allowed")
_UNAUTHORIZED = Failure(401, "invalid_request_error", "invalid_api_key")
_INTERNAL = Failure(500, "server_error")
_TABLE: tuple[tuple[type[Exception], Failure], ...] = (
    (errors.ModelNotFound, Failure(404, "invalid_request_error", "model_not_found")),
    (errors.ContextExceeded, Failure(400, "invalid_request_error", "context_length_exceeded")),
    (errors.Overloaded, Failure(429, "rate_limit_error", "rate_limit_exceeded")),
    (NotFound, Failure(404, "invalid_request_error")),
    (MethodNotAllowed, Failure(405, "invalid_request_error")),
    (BodyTooLarge, Failure(413, "invalid_request_error")),
    (BodyTimeout, Failure(408, "invalid_request_error")),
    (errors.RequestError, Failure(400, "invalid_request_error")),
    (errors.DeadlineExceeded, Failure(504, "server_error")),
    (errors.WorkerLost, Failure(503, "server_error")),
)


def failure_of(error: Exception) -> Failure:
    """OpenAI's class of ``error``; a server error where the tree knows no better."""
    if isinstance(error, Forbidden):
        return _NO_ACCESS if isinstance(error, ModelForbidden) else _UNAUTHORIZED
    return next((failure for kind, failure in _TABLE if isinstance(error, kind)), _INTERNAL)


def _body(error: Exception, failure: Failure) -> dict[str, Any]:
    known = isinstance(error, errors.DiptychError)
    message = str(error) if known else "The server had an error while processing your request."
    param = error.param if isinstance(error, InvalidParameter) else None
    if isinstance(error, errors.ModelNotFound):
        param = "model"
    return {"error": {"message": message, "type": failure.type, "param": param, "code": failure.code}}


def error_response(error: Exception, request_id: str) -> Response:
    """The answer to a request that failed before its response began."""
    failure = failure_of(error)
    return json_response(_body(error, failure), request_id, failure.status)


def error_event(error: Exception) -> bytes:
    """The event that ends a stream that has begun; clients raise on it."""
    return b"data: " + to_json(_body(error, failure_of(error))) + b"\n\n"
