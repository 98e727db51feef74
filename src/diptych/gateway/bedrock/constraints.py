"""Bedrock's wording of a value that is out of range. Pure."""

from __future__ import annotations

import re

from diptych.errors import InvalidRequest


def violated(value: object, path: str, constraint: str) -> InvalidRequest:
    """The service's own sentence for a member that fails a modelled constraint."""
    return InvalidRequest(
        f"1 validation error detected: Value '{value}' at '{path}' failed to satisfy constraint: {constraint}"
    )


def within(value: float | None, path: str, low: float, high: float | None = None) -> None:
    """Raises InvalidRequest unless ``low`` <= value <= ``high``. None, a member that is absent, passes."""
    if value is None:
        return
    if not value >= low:
        raise violated(value, path, f"Member must have value greater than or equal to {low:g}")
    if high is not None and not value <= high:
        raise violated(value, path, f"Member must have value less than or equal to {high:g}")


_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}")


def checked_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """``requestMetadata`` within its limits. Raises InvalidRequest."""
    if len(metadata) > 16:
        raise violated("{...}", "requestMetadata", "Member must have length less than or equal to 16")
    for text in (*metadata, *metadata.values()):
        if not _METADATA.fullmatch(text):
            pattern = "Member must satisfy regular expression pattern: [a-zA-Z0-9\\s:_@$#=/+,-.]{0,256}"
            raise violated(text, "requestMetadata", pattern)
    return metadata
