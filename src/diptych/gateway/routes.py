"""What the routes of every dialect share: an id for the request, and the error tree in their shape."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.errors import DiptychError
from diptych.gateway.auth import Key, Keys, authenticate
from diptych.gateway.auth.authenticate import bearer_key
from diptych.gateway.catalog import find_model
from diptych.gateway.generation import Generation
from diptych.gateway.intake import Limits, read_body
from diptych.gateway.lifetime import ClientGone, InFlight
from diptych.gateway.metrics import Metrics
from diptych.gateway.output import OutputReader
from diptych.gateway.ports import ServedModel, Service
from diptych.gateway.quotas import Quotas, Reservation
from diptych.gateway.refusals import MethodNotAllowed, ModelForbidden
from diptych.types import Request as ServiceRequest

log = logging.getLogger("diptych.gateway")

Handler = Callable[["Call"], Awaitable[Response]]
ErrorResponse = Callable[[Exception, str], Response]


def new_id() -> str:
    """An id for a request, which is also its record's."""
    return str(uuid.uuid4())


class Gateway:
    """What every handler needs: the service, the settings and the requests in flight."""

    def __init__(self, service: Service, limits: Limits, region: str, keys: Keys) -> None:
        self.service = service
        self.limits = limits
        self.region = region
        self.keys = keys
        self.in_flight = InFlight()
        self.quotas = Quotas(time.monotonic)
        self.metrics = Metrics(lambda: len(self.in_flight), lambda: service.health().get("handoffs", {}))


class Call:
    """One HTTP request on its way: its id is the id of the service's request and of the record."""

    def __init__(self, gateway: Gateway, http: Request) -> None:
        self.gateway = gateway
        self.http = http
        self.id = new_id()
        self.created = int(time.time())
        self.key: Key | None = None
        self.generations: Sequence[Generation] = ()
        self._reserved = Reservation()
        self._body: bytes | None = None

    async def body(self) -> bytes:
        """The request's body, read once."""
        if self._body is None:
            self._body = await read_body(self.http, self.gateway.limits)
        return self._body

    async def authenticate(self) -> None:
        """Sets ``key``. A bearer token is checked before the body is read. Raises Forbidden."""
        keys = self.gateway.keys
        if not keys:
            return
        self.key = bearer_key(keys, self.http)
        if self.key is None:
            self.key = authenticate(keys, self.http, await self.body())

    def model(self, name: str) -> ServedModel:
        """The model that ``name`` means, if the key is for it. Raises ModelNotFound or ModelForbidden."""
        model = find_model(self.gateway.service.models(), name)
        if self.key is not None and not self.key.may_use((model.id, *model.aliases)):
            raise ModelForbidden
        return model

    def generation(self, model: ServedModel, request: ServiceRequest, reader: OutputReader | None) -> Generation:
        """Prepares the one generation that answers this call."""
        made = Generation(self.gateway.service, model, request, reader)
        self.begin([made])
        return made

    def begin(self, generations: Sequence[Generation]) -> None:
        """Sets aside the tokens that the generations may take. Raises Throttled."""
        first = generations[0]
        most = first.prompt_tokens + sum(one.request.sampling.max_tokens for one in generations)
        self._reserved = self.gateway.quotas.reserve(self.key, first.model.id, most)
        self.generations = generations

    def end(self) -> None:
        """Settles what was set aside. A request that made no token is not charged."""
        made = sum(one.output_tokens for one in self.generations)
        used = self.generations[0].prompt_tokens + made if made else 0
        self.gateway.quotas.settle(self._reserved, used)


class Endpoint:
    """A handler as an ASGI app. Whatever it raises before the response begins becomes its dialect's error."""

    def __init__(
        self, gateway: Gateway, method: str, handler: Handler, error_response: ErrorResponse, *, guarded: bool = True
    ) -> None:
        self._gateway = gateway
        self._method = method
        self._guarded = guarded
        self._handler = handler
        self._operation = getattr(handler, "__name__", "operation")
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self._gateway, Request(scope, receive))
        status = 499
        try:
            response = await self._respond(call)
            status = response.status_code
            await response(scope, receive, send)
        except (ClientGone, ClientDisconnect):
            status = 499
        except Exception as error:
            if not isinstance(error, DiptychError):
                log.exception("request %s failed", call.id)
            response = self._error_response(error, call.id)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            call.end()
            records = [generation.record for generation in call.generations]
            self._gateway.metrics.answered(
                self._operation, status, [record for record in records if record is not None]
            )  # fmt: skip

    async def _respond(self, call: Call) -> Response:
        http = call.http
        if http.method != self._method:
            raise MethodNotAllowed(f"{http.method} is not allowed for {http.scope['path']}; use {self._method}.")
        if self._guarded:
            await call.authenticate()
        return await self._handler(call)
