"""The native bodies of InvokeModel, one file a schema, loaded on first use.

Which schema speaks is decided by the id that the client names, so an alias such as ``meta.llama3-1-8b-instruct-v1:0``
brings Meta's with it. Ids of no known provider speak OpenAI's chat schema.
"""

from __future__ import annotations

import importlib

from diptych.gateway.bedrock.families.schema import Schema
from diptych.gateway.catalog import bare_id

_BY_PREFIX = (
    ("amazon.nova", "nova"),
    ("meta.llama", "llama"),
    ("mistral.mistral-7b", "mistral"),
    ("mistral.mixtral", "mistral"),
    ("deepseek.r1", "deepseek"),
    ("anthropic.claude", "claude"),
)


def schema_of(model_id: str) -> Schema:
    """The schema of the model that ``model_id`` names, an id or an ARN."""
    name = bare_id(model_id)
    module = next((module for prefix, module in _BY_PREFIX if name.startswith(prefix)), "chat")
    found: Schema = importlib.import_module(f"{__name__}.{module}").SCHEMA
    return found
