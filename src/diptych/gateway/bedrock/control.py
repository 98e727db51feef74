"""Bedrock's control plane, the read side: what is served, as foundation models and inference profiles. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.catalog import bare_id, find_model
from diptych.gateway.intake import natural
from diptych.gateway.ports import ServedModel

ACCOUNT = "000000000000"
_PROVIDERS = {
    "amazon": "Amazon", "meta": "Meta", "mistral": "Mistral AI", "deepseek": "DeepSeek", "openai": "OpenAI",
    "qwen": "Qwen", "google": "Google", "anthropic": "Anthropic", "nvidia": "NVIDIA", "minimax": "MiniMax",
}  # fmt: skip
_NAME_LENGTH = 20


class Plane(msgspec.Struct, frozen=True):
    """The models as one region shows them. A region is a label: every region answers alike."""

    models: tuple[ServedModel, ...]
    region: str

    def foundation_models(self) -> Iterator[tuple[str, ServedModel]]:
        """Every id that a model goes by."""
        for model in self.models:
            for name in (model.id, *model.aliases):
                yield name, model

    def summary(self, name: str) -> dict[str, Any]:
        """FoundationModelSummary, which is FoundationModelDetails too."""
        return {
            "modelArn": self.model_arn(name),
            "modelId": name,
            "modelName": name.partition(".")[2][:_NAME_LENGTH] or name[:_NAME_LENGTH],
            "providerName": provider_of(name),
            "inputModalities": ["TEXT"],
            "outputModalities": ["TEXT"],
            "responseStreamingSupported": True,
            "customizationsSupported": [],
            "inferenceTypesSupported": ["ON_DEMAND"],
            "modelLifecycle": {"status": "ACTIVE"},
        }

    def model_arn(self, name: str) -> str:
        return f"arn:aws:bedrock:{self.region}::foundation-model/{name}"

    def profile(self, name: str) -> dict[str, Any]:
        """InferenceProfileSummary of the cross-region profile of a model."""
        model = find_model(self.models, name)
        profile_id = f"{self.geography}.{name}"
        created = datetime.fromtimestamp(model.created, UTC).isoformat()
        return {
            "inferenceProfileName": f"{self.geography.upper()} {_plain(self.summary(name)['modelName'])}",
            "description": f"Routes requests to {name}.",
            "createdAt": created,
            "updatedAt": created,
            "inferenceProfileArn": f"arn:aws:bedrock:{self.region}:{ACCOUNT}:inference-profile/{profile_id}",
            "models": [{"modelArn": self.model_arn(name)}],
            "inferenceProfileId": profile_id,
            "status": "ACTIVE",
            "type": "SYSTEM_DEFINED",
        }

    @property
    def geography(self) -> str:
        """The prefix of this region's cross-region profiles."""
        first = self.region.partition("-")[0]
        return {"ap": "apac"}.get(first, first)

    def profiled(self) -> list[str]:
        """The ids that have a profile: those of Bedrock's form, provider and name."""
        return [name for name, _ in self.foundation_models() if "." in name and bare_id(name) == name]


def provider_of(name: str) -> str:
    """The provider that an id names, or ours."""
    return _PROVIDERS.get(name.partition(".")[0], "Diptych") if "." in name else "Diptych"


def _plain(name: str) -> str:
    """The name in the characters that a profile's may have, which are fewer than a model's."""
    return re.sub(r"[^0-9a-zA-Z]+", "-", name).strip("-")


def page(token: str, size: str) -> tuple[int, int]:
    """(start, size) of a page of a list. Raises InvalidRequest."""
    start, most = natural(token), natural(size)
    if start is None or most is None or not 1 <= most <= 1000:
        raise InvalidRequest("maxResults must be a number from 1 to 1000, and nextToken one that was given.")
    return start, most


def matching(summaries: Sequence[dict[str, Any]], filters: dict[str, str]) -> list[dict[str, Any]]:
    """Summaries that pass ListFoundationModels' filters."""
    wanted: dict[str, Callable[[dict[str, Any], str], bool]] = {
        "byProvider": lambda model, value: model["providerName"].lower() == value.lower(),
        "byOutputModality": lambda model, value: value in model["outputModalities"],
        "byInferenceType": lambda model, value: value in model["inferenceTypesSupported"],
        "byCustomizationType": lambda model, value: value in model["customizationsSupported"],
    }
    asked = [(wanted[name], value) for name, value in filters.items() if name in wanted]
    return [model for model in summaries if all(passes(model, value) for passes, value in asked)]
