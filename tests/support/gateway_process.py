"""The real server over the scripted service, as a process of its own. Prints its port."""

from __future__ import annotations

import asyncio
import os
import sys

from diptych.errors import ConfigError
from diptych.gateway.app import build_app
from diptych.gateway.intake import Limits
from diptych.gateway.server import GatewayServer, Listen
from support.scripted import ScriptedService


def main() -> None:
    limits = Limits(body_timeout_s=float(os.environ.get("BODY_TIMEOUT_S", "60")))
    listen = Listen(port=int(os.environ.get("PORT", "0")), grace_s=float(os.environ.get("GRACE_S", "1")))
    server = GatewayServer(build_app(ScriptedService(), limits), listen)
    try:
        asyncio.run(server.serve(ready=lambda port: print(port, flush=True)))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
