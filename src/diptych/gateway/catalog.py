"""Which served model an id means. Pure.

An id may be the model's own, an alias, either with a region's prefix (``us.``, ``global.``), or any of these inside an
ARN (its part after the last slash).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diptych.errors import ModelNotFound
from diptych.gateway.ports import ServedModel

_REGION = re.compile(r"^(us|us-gov|eu|apac|jp|au|ca|global)\.(?=[a-z])")


def bare_id(model_id: str) -> str:
    """The id without ARN and region."""
    name = model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id
    return _REGION.sub("", name)


def find_model(models: Sequence[ServedModel], model_id: str) -> ServedModel:
    """The model that ``model_id`` names. Raises ModelNotFound with the ids that would be right."""
    wanted = (model_id, bare_id(model_id))
    for model in models:
        if any(name == model.id or name in model.aliases for name in wanted):
            return model
    known = ", ".join(sorted(name for model in models for name in (model.id, *model.aliases)))
    raise ModelNotFound(f"The model '{model_id}' does not exist. Served are: {known}.")
