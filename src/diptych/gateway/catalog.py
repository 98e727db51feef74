"""Which served model an id means. Pure.

An id may be the model's own, an alias, or either inside an ARN (its part after the last slash).
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import ModelNotFound
from diptych.gateway.ports import ServedModel


def find_model(models: Sequence[ServedModel], model_id: str) -> ServedModel:
    """The model that ``model_id`` names. Raises ModelNotFound with the ids that would be right."""
    wanted = model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id
    for model in models:
        if wanted == model.id or wanted in model.aliases:
            return model
    known = ", ".join(sorted(name for model in models for name in (model.id, *model.aliases)))
    raise ModelNotFound(f"The model '{model_id}' does not exist. Served are: {known}.")
