"""Values of OpenAI's parameters, checked and named where they are wrong. Pure."""

from __future__ import annotations

from diptych.errors import InvalidRequest


class InvalidParameter(InvalidRequest):
    """A value that is wrong, and the member that carries it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def check_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raises InvalidParameter unless ``low`` <= value <= ``high``. None, a member that is absent, passes."""
    if value is None or (value >= low and (high is None or value <= high)):
        return
    wanted = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
    raise InvalidParameter(name, f"'{name}' is {value:g}; it must be {wanted}.")


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings. Raises InvalidParameter."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > 4:
        raise InvalidParameter("stop", f"'stop' has {len(stops)} sequences; send at most 4.")
    if not all(stops):
        raise InvalidParameter("stop", "'stop' has an empty sequence. Remove it.")
    return tuple(stops)
