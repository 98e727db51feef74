"""Slots: one request each, first come first served, and only what is certain is re-used."""

from __future__ import annotations

import asyncio

import pytest

from diptych.engines.llamacpp.slots import Slots
from diptych.errors import WorkerLost


async def take(slots: Slots, prompt: tuple[int, ...] = (1,), *, overwrite: bool = False) -> int:
    return (await slots.acquire(prompt, overwrite=overwrite)).index


async def holding(*contents: tuple[int, ...]) -> Slots:
    slots = Slots(len(contents))
    taken = [await slots.acquire((), overwrite=True) for _ in contents]
    for slot, content in zip(taken, contents, strict=True):
        slot.hold(content)
        slots.release(slot)
    return slots


async def test_the_longest_shared_prefix_wins() -> None:
    slots = await holding((1, 2), (1, 2, 3, 4), (), (9, 9, 9))
    assert slots.cached_tokens((1, 2, 3, 5)) == 3
    assert await take(slots, (1, 2, 3, 5)) == 1
    assert slots.cached_tokens((1, 2, 3, 5)) == 2


async def test_the_last_token_never_counts_as_cached() -> None:
    slots = await holding((1, 2, 3), ())
    assert slots.cached_tokens((1, 2, 3)) == 2


async def test_without_a_shared_prefix_the_least_is_lost() -> None:
    slots = await holding((7, 7, 7), (8,), (9, 9))
    assert await take(slots, (1, 2)) == 1


async def test_overwriting_spares_other_conversations() -> None:
    slots = await holding((1, 2, 50, 51, 52, 53), (1, 2, 3, 4), (1, 2))
    assert await take(slots, (1, 2, 3, 4, 5, 6), overwrite=True) in {1, 2}
    assert await take(slots, (1, 2, 3, 4, 5, 6), overwrite=True) in {1, 2}
    assert await take(slots, (1, 2, 3, 4, 5, 6), overwrite=True) == 0


async def test_equals_go_by_age() -> None:
    slots = await holding((), (), ())
    order = [await slots.acquire((1,), overwrite=False) for _ in range(3)]
    for slot in (order[1], order[2], order[0]):
        slots.release(slot)
    assert [await take(slots) for _ in range(3)] == [order[1].index, order[2].index, order[0].index]


async def test_first_come_first_served() -> None:
    slots = Slots(2)
    running = [await slots.acquire((1,), overwrite=False) for _ in range(2)]
    served: list[int] = []

    async def request(number: int) -> None:
        slot = await slots.acquire((1,), overwrite=False)
        served.append(number)
        await asyncio.sleep(0)
        slots.release(slot)

    tasks = [asyncio.create_task(request(number)) for number in range(20)]
    await asyncio.sleep(0)
    assert slots.waiting == 20
    for slot in running:
        slots.release(slot)
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert (slots.waiting, slots.busy) == (0, [])


async def test_nobody_overtakes_the_one_who_was_called() -> None:
    slots = Slots(1)
    slot = await slots.acquire((1,), overwrite=False)
    waiter = asyncio.create_task(slots.acquire((1,), overwrite=False))
    await asyncio.sleep(0)
    slots.release(slot)
    late = asyncio.create_task(slots.acquire((1,), overwrite=False))
    assert await waiter is slot
    assert not late.done()
    late.cancel()


@pytest.mark.parametrize("released_first", [True, False])
async def test_a_cancelled_waiter_passes_its_turn_on(released_first: bool) -> None:
    slots = Slots(1)
    slot = await slots.acquire((1,), overwrite=False)
    first, second = (asyncio.create_task(slots.acquire((1,), overwrite=False)) for _ in range(2))
    await asyncio.sleep(0)
    if released_first:
        slots.release(slot)
        first.cancel()
    else:
        first.cancel()
        await asyncio.sleep(0)
        slots.release(slot)
    assert await asyncio.wait_for(second, 1) is slot
    assert first.cancelled()


async def test_failure_ends_every_wait() -> None:
    slots = Slots(1)
    await slots.acquire((1,), overwrite=False)
    waiters = [asyncio.create_task(slots.acquire((1,), overwrite=False)) for _ in range(3)]
    await asyncio.sleep(0)
    slots.fail(WorkerLost("gone"))
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(result) for result in results] == ["gone"] * 3
    assert slots.waiting == 0


async def test_a_free_slot_that_holds_all_of_it_can_be_taken() -> None:
    slots = await holding((1, 2, 3), (1, 2, 3, 4), ())
    slot = slots.take((1, 2, 3, 4))
    assert slot is not None
    assert slot.index == 1
    assert slots.take((1, 2, 3, 4)) is None, "somebody has it"
    assert slots.take((1, 5)) is None
    slots.release(slot)
    assert len(slot.tokens) == 4


async def test_idle_is_when_nothing_runs_or_waits() -> None:
    slots = await holding((1,))
    slot = await slots.acquire((1,), overwrite=False)
    waiting, idle = asyncio.create_task(slots.acquire((2,), overwrite=False)), asyncio.create_task(slots.idle())
    await asyncio.sleep(0)
    slots.release(slot)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not idle.done(), "another one had waited"
    slots.release(await waiting)
    await idle
    await slots.idle()


async def test_idle_after_the_last_one_gave_up_waiting() -> None:
    slots = await holding((1,))
    slot = await slots.acquire((1,), overwrite=False)
    waiting, idle = asyncio.create_task(slots.acquire((2,), overwrite=False)), asyncio.create_task(slots.idle())
    await asyncio.sleep(0)
    slots.release(slot)
    waiting.cancel()
    await asyncio.wait_for(idle, 5)
