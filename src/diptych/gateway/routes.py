"""What the routes of every dialect share: an id for the request, and the error tree in their shape."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.errors import DiptychError
from diptych.gateway.intake import Limits
from diptych.gateway.lifetime import ClientGone, InFlight
from diptych.gateway.ports import Service
from diptych.gateway.refusals import MethodNotAllowed

log = logging.getLogger("diptych.gateway")

Handler = Callable[["Call"], Awaitable[Response]]
ErrorResponse = Callable[[Exception, str], Response]


def new_id() -> str:
    """An id for a request, which is also its record's."""
    return str(uuid.uuid4())


class Gateway:
    """What every handler needs: the service, the limits, the region's label and the requests in flight."""

    def __init__(self, service: Service, limits: Limits, region: str) -> None:
        self.service = service
        self.limits = limits
        self.region = region
        self.in_flight = InFlight()


class Call:
    """One HTTP request on its way: its id is the id of the service's request and of the record."""

    def __init__(self, gateway: Gateway, http: Request) -> None:
        self.gateway = gateway
        self.http = http
        self.id = new_id()
        self.created = int(time.time())


class Endpoint:
    """A handler as an ASGI app. Whatever it raises before the response begins becomes its dialect's error."""

    def __init__(self, gateway: Gateway, method: str, handler: Handler, error_response: ErrorResponse) -> None:
        self._gateway = gateway
        self._method = method
        self._handler = handler
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self._gateway, Request(scope, receive))
        try:
            response = await self._respond(call)
            await response(scope, receive, send)
        except (ClientGone, ClientDisconnect):
            return
        except Exception as error:
            if not isinstance(error, DiptychError):
                log.exception("request %s failed", call.id)
            await self._error_response(error, call.id)(scope, receive, send)

    async def _respond(self, call: Call) -> Response:
        http = call.http
        if http.method != self._method:
            raise MethodNotAllowed(f"{http.method} is not allowed for {http.scope['path']}; use {self._method}.")
        return await self._handler(call)
