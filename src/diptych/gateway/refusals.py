"""What the gateway refuses by itself, before any model is asked."""

from __future__ import annotations

from diptych.errors import InvalidRequest, RequestError


class BodyTooLarge(InvalidRequest):
    """The body is over the limit. It was not read to its end."""


class BodyTimeout(InvalidRequest):
    """The body did not arrive in time."""


class MalformedBody(InvalidRequest):
    """The body is no JSON, or not of the shape that the operation takes."""


class NotFound(RequestError):
    """Nothing is served at this path, or under this id."""


class MethodNotAllowed(RequestError):
    """The path is served, but not with this method."""
