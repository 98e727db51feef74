"""Several generations at once: all to their ends, or their events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from diptych.gateway.generation import Generation
from diptych.gateway.output import Part
from diptych.types import TokenLogprob


async def all_whole(generations: Sequence[Generation]) -> list[tuple[list[Part], list[TokenLogprob]]]:
    """Every generation to its end; the first error cancels the others and is raised."""
    if len(generations) == 1:
        return [await generations[0].whole()]
    tasks = [asyncio.ensure_future(generation.whole()) for generation in generations]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def interleaved(streams: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """Events of several streams as they come. An error of one closes all and is raised."""
    events: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def drain(stream: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    events.put_nowait(event)
        finally:
            events.put_nowait(None)

    tasks = [asyncio.create_task(drain(stream)) for stream in streams]
    try:
        for _ in streams:
            while (event := await events.get()) is not None:
                yield event
            for task in tasks:
                if task.done():
                    task.result()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
