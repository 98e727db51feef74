"""The weather's argument for clients that read it off a type. Annotations are values here: they are looked at."""

from typing import Literal

City = Literal["Paris", "Rome"]


def weather(city: City) -> str:
    return f"It is sunny in {city}."
