"""The error tree as Bedrock's exceptions: HTTP code, name, text, and the form inside a stream. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from diptych import errors
from diptych.gateway.event_stream import exception_frame
from diptych.gateway.refusals import Forbidden, MethodNotAllowed, NotFound, Throttled
from diptych.gateway.responses import json_response, to_json


class Failure(msgspec.Struct, frozen=True):
    """A modelled exception. ``in_stream`` is the event stream's member for it."""

    status: int
    code: str
    in_stream: str


_VALIDATION = Failure(400, "ValidationException", "validationException")
_INTERNAL = Failure(500, "InternalServerException", "internalServerException")
_TABLE: tuple[tuple[type[Exception], Failure], ...] = (
    (NotFound, Failure(404, "ResourceNotFoundException", "validationException")),
    (MethodNotAllowed, Failure(405, "UnknownOperationException", "validationException")),
    (errors.Overloaded, Failure(429, "ThrottlingException", "throttlingException")),
    (errors.RequestError, _VALIDATION),
    (errors.DeadlineExceeded, Failure(408, "ModelTimeoutException", "modelStreamErrorException")),
    (errors.EngineError, Failure(424, "ModelErrorException", "modelStreamErrorException")),
    (errors.WorkerError, Failure(503, "ServiceUnavailableException", "serviceUnavailableException")),
)
_ORIGIN = "http://internal.amazon.com/coral/com.amazon.bedrock/"


def failure_of(error: Exception) -> Failure:
    """The exception that Bedrock has for ``error``; an internal one where the tree knows no better."""
    if isinstance(error, Forbidden):
        return Failure(error.status, error.code, "validationException")
    return next((failure for kind, failure in _TABLE if isinstance(error, kind)), _INTERNAL)


def message_of(error: Exception) -> str:
    """The text, to the letter where clients match it."""
    if isinstance(error, errors.ModelNotFound):
        return "The provided model identifier is invalid."
    if isinstance(error, errors.ContextExceeded):
        return f"Input is too long for requested model. {error}"
    if isinstance(error, errors.Overloaded) and not isinstance(error, Throttled):
        return "Too many requests, please wait before trying again."
    if isinstance(error, errors.DiptychError):
        return str(error)
    return "The system encountered an unexpected error during processing. Try your request again."


def _body(error: Exception, failure: Failure) -> dict[str, Any]:
    body: dict[str, Any] = {"message": message_of(error)}
    if failure.in_stream == "modelStreamErrorException" and failure.status == 424:
        body["originalStatusCode"] = 500
    return body


def error_response(error: Exception, request_id: str) -> Response:
    """The answer to a request that failed before its response began."""
    failure = failure_of(error)
    headers = {"x-amzn-ErrorType": f"{failure.code}:{_ORIGIN}"}
    return json_response(_body(error, failure), request_id, failure.status, headers)


def error_frame(error: Exception) -> bytes:
    """The frame that ends a stream that has begun."""
    return exception_frame(failure_of(error).in_stream, to_json({"message": message_of(error)}))
