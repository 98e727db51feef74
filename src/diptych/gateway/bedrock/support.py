"""What of Bedrock's API is served, member by member: the table behind ``docs/bedrock.md``. Pure.

The members are botocore's; here stands only what we do with them. A member that is not named is honoured, so a new
one in botocore's model must be looked at: the document goes stale, and its test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OPERATIONS: dict[str, tuple[str, ...]] = {
    "bedrock-runtime": (
        "Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream", "CountTokens", "ApplyGuardrail",
    ),
    "bedrock": (
        "ListFoundationModels", "GetFoundationModel", "GetFoundationModelAvailability", "ListInferenceProfiles",
        "GetInferenceProfile", "GetModelInvocationLoggingConfiguration", "ListGuardrails", "GetGuardrail",
        "ListCustomModels", "ListImportedModels", "ListPromptRouters", "ListProvisionedModelThroughputs",
        "ListMarketplaceModelEndpoints", "ListCustomModelDeployments",
    ),
}  # fmt: skip

REFUSED = "refused with ValidationException"
IGNORED = "accepted, without effect"

EMPTY = "accepted; the list is always empty"
_EMPTY_LISTS = frozenset({
    "ListCustomModels", "ListImportedModels", "ListPromptRouters", "ListProvisionedModelThroughputs",
    "ListMarketplaceModelEndpoints", "ListCustomModelDeployments",
})  # fmt: skip

_CONVERSE: Mapping[str, str] = {
    "promptVariables": REFUSED,
    "requestMetadata": "checked; kept in the invocation log",
    "outputConfig.effort": REFUSED,
    "messages.content.image": REFUSED,
    "messages.content.document": REFUSED,
    "messages.content.video": REFUSED,
    "messages.content.audio": REFUSED,
    "messages.content.citationsContent": REFUSED,
    "messages.content.searchResult": REFUSED,
    "messages.content.toolAddition": REFUSED,
    "messages.content.toolRemoval": REFUSED,
    "messages.content.cachePoint": IGNORED,
    "messages.content.reasoningContent": IGNORED,
    "system.cachePoint": IGNORED,
    "toolConfig.tools.systemTool": REFUSED,
    "toolConfig.tools.cachePoint": IGNORED,
    "additionalModelRequestFields": "top_k, min_p, seed, presence_penalty, frequency_penalty, ignore_eos; no others",
    "additionalModelResponseFieldPaths": "/stop_sequence; others ignored",
    "serviceTier": "the order in which requests are served; what was served is echoed; priority may use the pair",
    "performanceConfig": "optimized may use the pair; what was served is echoed",
}
_INVOKE = {
    "accept": IGNORED,
    "contentType": IGNORED,
    "requestMetadata": "checked; kept in the invocation log",
}

MEMBERS: dict[str, Mapping[str, str]] = {
    "Converse": _CONVERSE,
    "ConverseStream": _CONVERSE,
    "InvokeModel": _INVOKE,
    "InvokeModelWithResponseStream": _INVOKE,
    "ApplyGuardrail": {"content.image": REFUSED, "content.text.qualifiers": "checked; every text is judged"},
    "CountTokens": {"input.converse.additionalModelRequestFields": IGNORED},
}
"""What is done with a member, by its path. Lists add nothing to a path."""

_OPENED = frozenset({
    "messages", "messages.content", "system", "inferenceConfig", "toolConfig", "toolConfig.tools",
    "toolConfig.toolChoice", "outputConfig", "outputConfig.textFormat", "input", "input.converse", "input.invokeModel",
    "guardrailConfig", "content", "content.text",
})  # fmt: skip
"""Members whose own members are listed."""


def request_members(shape: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, shape) of the request's members, opened as far as the document goes."""
    for name, member in shape.members.items():
        here = f"{path}.{name}" if path else name
        yield here, member
        inner = member.member if member.type_name == "list" else member
        if here in _OPENED and inner.type_name == "structure":
            yield from request_members(inner, here)


def treatment(operation: str, path: str) -> str:
    """What is done with a member of an operation's request."""
    known = MEMBERS.get(operation, {})
    if path in known:
        return known[path]
    return EMPTY if operation in _EMPTY_LISTS else "honoured"
