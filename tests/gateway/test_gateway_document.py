from __future__ import annotations

from pathlib import Path

import pytest
from botocore.session import Session

from diptych.gateway.app import build_app
from diptych.gateway.bedrock.document import document
from diptych.gateway.bedrock.support import MEMBERS, OPERATIONS, request_members
from support.scripted import ScriptedService

DOCUMENT = Path(__file__).parents[2] / "docs" / "bedrock.md"


def test_the_document_is_not_stale() -> None:
    command = "python -m diptych.gateway.bedrock.document > docs/bedrock.md"
    assert DOCUMENT.read_text() == document(), f"run: {command}"


@pytest.mark.parametrize("operation", MEMBERS)
def test_every_member_that_we_speak_of_exists(operation: str) -> None:
    model = Session().get_service_model("bedrock-runtime").operation_model(operation)
    assert set(MEMBERS[operation]) <= {path for path, _ in request_members(model.input_shape)}


def test_every_operation_that_we_speak_of_has_a_route() -> None:
    routes = build_app(ScriptedService())._router.routes
    for service, operations in OPERATIONS.items():
        model = Session().get_service_model(service)
        for name in operations:
            http = model.operation_model(name).http
            path = http["requestUri"].replace("{modelId}", "m").replace("{modelIdentifier}", "m")
            path = path.replace("{inferenceProfileIdentifier}", "p")
            path = path.replace("{guardrailIdentifier}", "g").replace("{guardrailVersion}", "1")
            scope = {"type": "http", "path": path, "method": http["method"]}
            assert any(route.matches(scope)[0].value == 2 for route in routes), name
