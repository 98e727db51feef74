"""The gateway as one ASGI app over a service.

Paths are routed as they were sent: a model id may hold an encoded slash or colon, and a signature
covers the raw form.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from diptych.gateway.bedrock import failures as bedrock_failures
from diptych.gateway.bedrock.routes import bedrock_routes
from diptych.gateway.intake import Limits
from diptych.gateway.openai import failures as openai_failures
from diptych.gateway.openai.routes import openai_routes
from diptych.gateway.operations import operation_routes
from diptych.gateway.ports import Service
from diptych.gateway.refusals import MethodNotAllowed, NotFound
from diptych.gateway.routes import Call, Gateway

_BEDROCK_PATHS = ("/model/",)


def build_app(service: Service, limits: Limits | None = None) -> GatewayApp:
    """The app. ``limits`` bound what a request's body may cost."""
    return GatewayApp(Gateway(service, limits or Limits()))


class GatewayApp:
    """Routes on the raw path. ``gateway.in_flight`` holds what is being answered."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        routes = [*bedrock_routes(gateway), *openai_routes(gateway), *operation_routes(gateway)]
        app = Starlette(routes=routes, exception_handlers={404: self._unrouted, 405: self._unrouted})
        app.router.redirect_slashes = False
        self._app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if raw_path := scope.get("raw_path"):
            scope["path"] = raw_path.decode("latin-1")
        await self._app(scope, receive, send)

    async def _unrouted(self, request: Request, error: Exception) -> Response:
        """A path or method that is not served, in the shape of the dialect that the path belongs to."""
        path, call = request.scope["path"], Call(self.gateway, request)
        refusal = (
            MethodNotAllowed(f"{request.method} is not allowed for {path}.")
            if getattr(error, "status_code", 404) == 405
            else NotFound(f"There is no {path} here.")
        )
        bedrock = path.startswith(_BEDROCK_PATHS)
        respond = bedrock_failures.error_response if bedrock else openai_failures.error_response
        return respond(refusal, call.id)
