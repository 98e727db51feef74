"""A handoff's KV into a slot.

An image of the pool is held from the copy to the restore, and belongs to nobody else in between::

    header by us -> rows by landed.admit (copied, digest of the copy) -> header checked -> restore -> count
                    the sender may still write to the landing area, but not to the copy
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.images import ImagePool, SlotImage
from diptych.engines.protocol import LandedKV
from diptych.errors import CorruptKV, EngineError, InvalidRequest


class Takeover:
    """Brings handed-over KV into slots of one server."""

    def __init__(self, client: Client, images: ImagePool) -> None:
        self._client, self._images = client, images

    async def into(self, slot: int, prompt: Sequence[int], landed: LandedKV) -> None:
        """Restores ``landed``, the KV of the first tokens of ``prompt``, at most all but the last, into ``slot``.

        Raises HandoffError. Once begun it runs to its end even when the caller is cancelled: the server may
        still read from the image, so nobody else must get it yet.
        """
        task = asyncio.ensure_future(self._run(slot, prompt, landed))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            raise

    async def _run(self, slot: int, prompt: Sequence[int], landed: LandedKV) -> None:
        if not 0 < landed.tokens < len(prompt):
            raise CorruptKV(f"{landed.tokens} tokens were handed over of a prompt of {len(prompt)}")
        tokens = prompt[: landed.tokens]
        async with self._images.take() as image:
            await asyncio.to_thread(landed.admit, image.prepare(tokens))
            image.verify(tokens)
            await self._restore(slot, image, len(tokens))

    async def _restore(self, slot: int, image: SlotImage, tokens: int) -> None:
        try:
            reply = await self._client.slot(slot, "restore", image.name)
        except (InvalidRequest, EngineError) as error:
            raise CorruptKV(f"llama-server does not restore the slot: {error}") from error
        if (reply.n_restored, reply.n_read) != (tokens, image.file_bytes):
            raise CorruptKV(f"llama-server restored {reply.n_restored} tokens of {tokens}")


def confirm(cache: int | None, landed: int) -> None:
    """``cache`` is the server's own count of the prompt tokens that it did not compute. Raises CorruptKV."""
    if cache != landed:
        raise CorruptKV(f"llama-server took over {cache} tokens of {landed}")
