"""What the gateway refuses by itself, before any model is asked."""

from __future__ import annotations

from diptych.errors import InvalidRequest, Overloaded, RequestError


class BodyTooLarge(InvalidRequest):
    """The body is over the limit. It was not read to its end."""


class BodyTimeout(InvalidRequest):
    """The body did not arrive in time."""


class MalformedBody(InvalidRequest):
    """The body is no JSON, or not of the shape that the operation takes."""


class Forbidden(RequestError):
    """The client may not do this. ``code`` is AWS's name for the reason."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ModelForbidden(Forbidden):
    """The key is not for this model."""

    def __init__(self) -> None:
        super().__init__("AccessDeniedException", "You don't have access to the model with the specified model ID.")


class Throttled(Overloaded):
    """The key has used its tokens. The text is the one that Bedrock has for it."""


class NotFound(RequestError):
    """Nothing is served at this path, or under this id."""


class MethodNotAllowed(RequestError):
    """The path is served, but not with this method."""
