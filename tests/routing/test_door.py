from __future__ import annotations

import asyncio

import pytest

from diptych.admission import Door
from diptych.errors import Overloaded
from diptych.routing.admission import Admission
from diptych.types import Request, Sampling, Tier


def request(name: str, tier: Tier = "default") -> Request:
    return Request(id=name, model="m", prompt=(1,), sampling=Sampling(max_tokens=1), tier=tier)


async def test_turns_by_tier() -> None:
    door = Door(Admission(lambda: 1), 5.0)
    first = request("first")
    await door.enter(first)
    order: list[str] = []

    async def ask(one: Request) -> None:
        await door.enter(one)
        order.append(one.id)
        door.leave(one)

    async with asyncio.TaskGroup() as group:
        for one in (request("f", "flex"), request("d"), request("p", "priority")):
            group.create_task(ask(one))
        await asyncio.sleep(0)
        door.leave(first)
    assert order == ["p", "d", "f"]


async def test_patience_and_hanging_up() -> None:
    door = Door(Admission(lambda: 1), 0.02)
    first, second, third = request("a"), request("b"), request("c")
    await door.enter(first)
    with pytest.raises(Overloaded, match="no room"):
        await door.enter(second)
    door.leave(second)
    door.leave(second)
    waiting = asyncio.create_task(door.enter(third))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    door.leave(third)
    door.leave(first)
    await door.enter(request("d"))
    assert door.admission.inside == 1
