"""Learns at start-up what this build of llama-server writes into a slot file, and that it takes one back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.slotfile import SlotForm, UnknownFormError, first_words, learn
from diptych.errors import ConfigError
from diptych.types import Sampling

PROBES = ((1, 2, 3), (9, 8, 7, 6, 5))
"""Token ids that every vocabulary has. They differ in number and content."""

ONE_TOKEN = Sampling(max_tokens=1, temperature=0, ignore_eos=True)


async def learn_form(client: Client, directory: Path, row_bytes: tuple[int, ...], build: str) -> SlotForm:
    """The slot file's form. Raises ConfigError that names the build and the header's words where it is
    unknown.
    """
    files = []
    for tokens in PROBES:
        await client.call("POST", "/completion", wire.completion(tokens, ONE_TOKEN, 0, reuse=False, stream=False))
        files.append((tokens, await saved(client, 0, directory)))
    try:
        form = learn(files, row_bytes)
    except UnknownFormError as error:
        words = first_words(files[0][1])
        raise ConfigError(f"{build} writes an unknown slot file: {error}. Its header: {words}") from error
    await _takes_it_back(client, directory, form, files[1], build)
    return form


async def saved(client: Client, slot: int, directory: Path) -> bytes:
    """What the server saves of a slot. The file is gone afterwards."""
    path = directory / f"saved-{secrets.token_hex(8)}"
    try:
        await client.slot(slot, "save", path.name)
        return await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError as error:
        raise ConfigError(f"llama-server does not save slots in {directory}: check its --slot-save-path") from error
    finally:
        path.unlink(missing_ok=True)


async def _takes_it_back(
    client: Client, directory: Path, form: SlotForm, probe: tuple[Sequence[int], bytes], build: str
) -> None:
    """Restores a probe and asks what the server took from it: the count on which every takeover rests."""
    tokens, data = probe
    path = directory / f"probe-{secrets.token_hex(8)}"
    path.write_bytes(data)
    try:
        reply = await client.slot(0, "restore", path.name)
        body = wire.completion([*tokens, tokens[0]], ONE_TOKEN, 0, reuse=True)
        async with aclosing(client.stream(body)) as events:
            first = await anext(events)
    finally:
        path.unlink()
    cache = None if first.prompt_progress is None else first.prompt_progress.cache
    if (reply.n_restored, reply.n_read, cache) != (len(tokens), form.layout(tokens).length, len(tokens)):
        raise ConfigError(f"{build} does not confirm what it takes from a restored slot (it says {reply}, {cache})")
