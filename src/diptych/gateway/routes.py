"""What the routes of every dialect share: an id for the request, and the error tree in their shape."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.errors import DiptychError
from diptych.gateway.auth import Key, Keys, authenticate
from diptych.gateway.auth.authenticate import bearer_key
from diptych.gateway.catalog import find_model
from diptych.gateway.features import Features
from diptych.gateway.generation import Generation
from diptych.gateway.guardrails.moderation import Answered, Guarded, Moderation
from diptych.gateway.intake import Limits, read_body
from diptych.gateway.invocation_log import Invocation, Tap, entry
from diptych.gateway.ledger import Ledger
from diptych.gateway.lifetime import ClientGone, InFlight
from diptych.gateway.metrics import Metrics, Waiting
from diptych.gateway.output import OutputReader
from diptych.gateway.ports import ServedModel, Service
from diptych.gateway.quotas import Quotas, Reservation
from diptych.gateway.refusals import MethodNotAllowed, ModelForbidden
from diptych.types import Request as ServiceRequest
from diptych.types import RequestRecord

log = logging.getLogger("diptych.gateway")

Handler = Callable[["Call"], Awaitable[Response]]
ErrorResponse = Callable[[Exception, str], Response]


def new_id() -> str:
    """An id for a request, which is also its record's."""
    return str(uuid.uuid4())


class Gateway:
    """What every handler needs: the service, the settings and the requests in flight."""

    def __init__(self, service: Service, limits: Limits, region: str, keys: Keys, features: Features) -> None:
        self.service = service
        self.limits = limits
        self.region = region
        self.keys = keys
        self.features = features
        self.guardrails = features.guardrails
        self.ledger = Ledger(features.prices)
        self.in_flight = InFlight()
        self.quotas = Quotas(time.monotonic)
        self.metrics = Metrics(lambda: len(self.in_flight), lambda: service.health().get("handoffs", {}))
        self.metrics.registry.register(Waiting(lambda: service.health().get("waiting", {})))

    def log(self, call: Call, handler: str, status: int, record: RequestRecord | None, tap: Tap) -> None:
        """A line of the invocation log."""
        about = Invocation(
            request_id=call.id,
            operation="".join(word.capitalize() for word in handler.split("_")),
            model_id=unquote(call.http.path_params.get("model_id", record.model if record else "")),
            key=call.key.name if call.key else None,
            status=status,
            error=call.error,
            metadata=call.metadata,
            record=record,
        )
        assert self.features.invocation_log is not None
        self.features.invocation_log.add(entry(about, self.region, call.sent, tap.answer(), tap.media_type))


class Call:
    """One HTTP request on its way: its id is the id of the service's request and of the record."""

    def __init__(self, gateway: Gateway, http: Request) -> None:
        self.gateway = gateway
        self.http = http
        self.id = new_id()
        self.created = int(time.time())
        self.key: Key | None = None
        self.generations: Sequence[Generation] = ()
        self.metadata: dict[str, Any] = {}
        self.error: str | None = None
        self._reserved = self._input = self._output = Reservation()
        self._body: bytes | None = None

    @property
    def sent(self) -> bytes:
        """The body as far as it was read."""
        return self._body or b""

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

    def generation(
        self,
        model: ServedModel,
        request: ServiceRequest,
        reader: OutputReader | None,
        moderation: Moderation | None = None,
    ) -> Generation:
        """Prepares the one generation that answers this call. What a guardrail answers by itself takes no tokens."""
        service = self.gateway.service
        if moderation is not None and moderation.input.blocked:
            return Answered(service, model, request, moderation)
        if moderation is None:
            made = Generation(service, model, request, reader)
        else:
            made = Guarded(service, model, request, reader, moderation)
        self.begin([made])
        return made

    def begin(self, generations: Sequence[Generation]) -> None:
        """Sets aside the tokens that the generations may take. Raises Throttled."""
        first = generations[0]
        prompt, output = first.prompt_tokens, sum(one.request.sampling.max_tokens for one in generations)
        quotas, model = self.gateway.quotas, first.model.id
        own = quotas.reserve_tier(self.key, model, prompt, output) if first.request.tier == "reserved" else None
        if own is not None:
            self._input, self._output = own
        else:
            self._reserved = quotas.reserve(self.key, model, prompt + output)
            _overflow(generations)
        self.generations = generations

    def end(self) -> None:
        """Settles what was set aside. A request that made no token is not charged."""
        if not self.generations:
            return
        made = sum(one.output_tokens for one in self.generations)
        read = self.generations[0].prompt_tokens if made else 0
        for reservation, used in ((self._reserved, read + made), (self._input, read), (self._output, made)):
            self.gateway.quotas.settle(reservation, used)


def _overflow(generations: Sequence[Generation]) -> None:
    """What the reserved tier has no room for is served as the default one."""
    for one in generations:
        if one.request.tier == "reserved":
            one.request = msgspec.structs.replace(one.request, tier="default")


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
        log_to = self._gateway.features.invocation_log
        tap = Tap(send) if log_to is not None and self._method == "POST" else None
        send = tap or send
        try:
            response = await self._respond(call)
            status = response.status_code
            await response(scope, receive, send)
        except (ClientGone, ClientDisconnect):
            status = 499
        except Exception as error:
            if not isinstance(error, DiptychError):
                log.exception("request %s failed", call.id)
            call.error = type(error).__name__
            response = self._error_response(error, call.id)
            if code := response.headers.get("x-amzn-errortype"):
                call.error = code.partition(":")[0]
            status = response.status_code
            await response(scope, receive, send)
        finally:
            call.end()
            self._ended(call, status, tap)

    def _ended(self, call: Call, status: int, tap: Tap | None) -> None:
        """Counts, charges, traces and logs what is over, all of it from the records."""
        gateway = self._gateway
        found = [generation.record for generation in call.generations]
        records = [record for record in found if record is not None]
        for record in records:
            gateway.ledger.charge(record, call.key.name if call.key else None)
            if gateway.features.tracing is not None:
                gateway.features.tracing.ended(record, call.http.headers, status)
        gateway.metrics.answered(self._operation, status, records)
        if tap is not None:
            gateway.log(call, self._operation, status, records[0] if records else None, tap)

    async def _respond(self, call: Call) -> Response:
        http = call.http
        if http.method != self._method:
            raise MethodNotAllowed(f"{http.method} is not allowed for {http.scope['path']}; use {self._method}.")
        if self._guarded:
            await call.authenticate()
        return await self._handler(call)
