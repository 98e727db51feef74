"""The real server over the scripted service, as a process of its own. Prints its port."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from diptych.config import GuardrailSettings, RegexSettings
from diptych.errors import ConfigError
from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys
from diptych.gateway.auth.keys import digest
from diptych.gateway.features import Features
from diptych.gateway.guardrails.policy import Guardrails
from diptych.gateway.intake import Limits
from diptych.gateway.server import GatewayServer, Listen
from diptych.gateway.tls import certificates
from support.scripted import ScriptedService

KEYS = (
    Key(name="signer", access_key_id="AKIDDIPTYCH", secret_access_key="s3cr3t/+key"),
    Key(name="bearer", api_key_sha256=digest("dip-a-long-key")),
)


GUARDRAILS = (
    GuardrailSettings(
        id="house",
        name="house-rules",
        description="What the house does not say.",
        version="3",
        words=("project nightingale", "damn"),
        pii={"EMAIL": "anonymize", "CREDIT_DEBIT_CARD_NUMBER": "block", "PHONE": "none"},
        regexes=(RegexSettings(name="ticket", pattern=r"TKT-\d{4,8}", action="anonymize"),),
        blocked_input="I may not read this.",
        blocked_output="I may not say this.",
    ),
)


def main() -> None:
    limits = Limits(body_timeout_s=float(os.environ.get("BODY_TIMEOUT_S", "60")))
    folder = os.environ.get("TLS_FOLDER")
    tls = certificates(Path(folder), "127.0.0.1", "us-east-1") if folder else None
    port, grace_s = int(os.environ.get("PORT", "0")), float(os.environ.get("GRACE_S", "1"))
    listen = Listen(port=port, grace_s=grace_s, tls=tls)
    keys = Keys(KEYS if "KEYS" in os.environ else ())
    features = Features(guardrails=Guardrails(GUARDRAILS))
    server = GatewayServer(build_app(ScriptedService(), limits, keys=keys, features=features), listen)
    try:
        asyncio.run(server.serve(ready=lambda port: print(port, flush=True)))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
