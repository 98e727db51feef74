"""A request's body: bounded in bytes and in time, then JSON."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from diptych.gateway.refusals import BodyTimeout, BodyTooLarge, MalformedBody

Shape = TypeVar("Shape")


class Limits(msgspec.Struct, frozen=True):
    """What a client may cost before its request is understood. 25 MB is Bedrock's own limit for a body."""

    body_bytes: int = 25_000_000
    body_timeout_s: float = 60.0


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises BodyTooLarge, BodyTimeout, or ClientDisconnect when the client has left."""
    declared = natural(request.headers.get("content-length", ""))
    if declared is not None and declared > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _collect(request, limits)
    except TimeoutError:
        raise BodyTimeout(
            f"The request body did not arrive within {limits.body_timeout_s:g} s. Send it again as a whole."
        ) from None


_NATURAL = re.compile(r"[0-9]{1,18}")


def natural(text: str) -> int | None:
    """A number that a client wrote out, of at most 18 digits; None for anything else.

    ``int`` alone raises for thousands of digits, and ``str.isdigit`` passes what it cannot read, such as "²".
    """
    return int(text) if _NATURAL.fullmatch(text) else None


async def _collect(request: Request, limits: Limits) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limits.body_bytes:
            raise _too_large(limits)
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limits.body_bytes} bytes. Send a smaller one.")


def parse(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    """The body in the decoder's shape. Raises MalformedBody with the place of what is wrong."""
    if not body:
        raise MalformedBody("The request body is empty. Send a JSON object.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise MalformedBody(str(error)) from None
    except UnicodeDecodeError:
        raise MalformedBody("The request body is not valid UTF-8. Encode it as UTF-8.") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(f"The request body is not valid JSON: {error}.") from None
    except RecursionError:
        raise MalformedBody("The request body is nested too deeply.") from None
