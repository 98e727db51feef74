"""The gateway as one ASGI app over a service.

Paths are routed as they were sent: a model id may hold an encoded slash or colon, and a signature covers the raw form.
Starlette's router stands alone, without its application: that one's middlewares would take part in every send, and
every endpoint answers its own errors (:class:`diptych.gateway.routes.Endpoint`).
"""

from __future__ import annotations

from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from diptych.gateway.anthropic.routes import anthropic_routes
from diptych.gateway.auth import Keys
from diptych.gateway.bedrock import failures as bedrock_failures
from diptych.gateway.bedrock.control_routes import control_routes
from diptych.gateway.bedrock.guardrail_routes import guardrail_routes
from diptych.gateway.bedrock.routes import bedrock_routes
from diptych.gateway.features import Features
from diptych.gateway.intake import Limits
from diptych.gateway.openai import failures as openai_failures
from diptych.gateway.openai.routes import openai_routes
from diptych.gateway.operations import operation_routes
from diptych.gateway.ports import Service
from diptych.gateway.refusals import NotFound
from diptych.gateway.routes import Gateway, new_id

_BEDROCK_PATHS = ("/model/", "/foundation-model", "/inference-profiles", "/guardrail", "/async-invoke")


def build_app(
    service: Service,
    limits: Limits | None = None,
    region: str = "us-east-1",
    keys: Keys | None = None,
    features: Features | None = None,
) -> GatewayApp:
    """The app. ``limits`` bound what a request's body may cost; ``region`` is the label in ARNs.

    Without ``keys`` everybody who reaches the address may do everything. ``features`` are what is switched on.
    """
    return GatewayApp(Gateway(service, limits or Limits(), region, keys or Keys(), features or Features()))


class GatewayApp:
    """Routes on the raw path. ``gateway.in_flight`` holds what is being answered."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        routes = [
            *bedrock_routes(gateway),
            *guardrail_routes(gateway),
            *control_routes(gateway),
            *openai_routes(gateway),
            *anthropic_routes(gateway),
            *operation_routes(gateway),
        ]
        self._router = Router(routes, redirect_slashes=False, default=_unrouted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if raw_path := scope.get("raw_path"):
            scope["path"] = raw_path.decode("latin-1")
        await self._router(scope, receive, send)


async def _unrouted(scope: Scope, receive: Receive, send: Send) -> None:
    """A path that is not served, in the shape of the dialect that it belongs to."""
    path = scope["path"]
    bedrock = path.startswith(_BEDROCK_PATHS)
    respond = bedrock_failures.error_response if bedrock else openai_failures.error_response
    await respond(NotFound(f"There is no {path} here."), new_id())(scope, receive, send)
