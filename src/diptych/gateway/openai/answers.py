"""Chat completions' answers: the whole one and the stream of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from diptych.gateway.generation import Generation
from diptych.gateway.openai.shapes import ChatBody
from diptych.gateway.ports import ChatFormat
from diptych.gateway.responses import to_json
from diptych.types import TokenLogprob

DONE = b"data: [DONE]\n\n"
_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "length": "length"}


def finish_reason(generation: Generation) -> str:
    return _FINISH[generation.ending]


def usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of all choices; the prompt is counted once."""
    record = generations[0].record
    read = generations[0].prompt_tokens
    made = sum(generation.output_tokens for generation in generations)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens if record else 0},
    }


def token_logprobs(chat: ChatFormat, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            **_one_logprob(chat, chance.token, chance.logprob),
            "top_logprobs": [_one_logprob(chat, token, logprob) for token, logprob in chance.top],
        }
        for chance in logprobs
    ]


def _one_logprob(chat: ChatFormat, token: int, logprob: float) -> dict[str, Any]:
    raw = chat.token_text(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


async def whole_choices(generations: Sequence[Generation]) -> list[tuple[str, list[TokenLogprob]]]:
    """Every generation to its end, side by side; the first error cancels the others and is raised."""
    if len(generations) == 1:
        return [await generations[0].whole()]
    tasks = [asyncio.ensure_future(generation.whole()) for generation in generations]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _common(generations: Sequence[Generation], created: int, kind: str, body: ChatBody) -> dict[str, Any]:
    common: dict[str, Any] = {
        "id": f"chatcmpl-{generations[0].request.id}",
        "object": kind,
        "created": created,
        "model": body.model,
    }
    if body.service_tier is not None:
        common["service_tier"] = "default" if body.service_tier == "auto" else body.service_tier
    return common


async def chat_answer(generations: Sequence[Generation], created: int, body: ChatBody) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    answered = await whole_choices(generations)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(generation, logprobs),
            "finish_reason": finish_reason(generation),
        }
        for index, (generation, (text, logprobs)) in enumerate(zip(generations, answered, strict=True))
    ]
    return {
        **_common(generations, created, "chat.completion", body),
        "choices": choices,
        "usage": usage(generations),
    }


def _logprobs(generation: Generation, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if generation.request.sampling.logprobs is None:
        return None
    return {"content": token_logprobs(generation.model.chat, logprobs), "refusal": None}


class ChunkForm:
    """The bytes of one choice's chunks: everything but the text is made once."""

    def __init__(self, common: dict[str, Any], index: int, include_usage: bool) -> None:
        self._usage = {"usage": None} if include_usage else {}
        self._common, self._index = common, index
        made = self.event({"content": "\0"}, None)
        self._head, self._tail = made.split(to_json("\0"))

    def event(self, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return b"data: " + to_json({**self._common, "choices": [choice], **self._usage}) + b"\n\n"

    def text(self, text: str) -> bytes:
        return self._head + to_json(text) + self._tail


async def chat_events(generations: Sequence[Generation], created: int, body: ChatBody) -> AsyncGenerator[bytes, None]:
    """The chunks of all choices, the usage chunk if it was asked for, and ``[DONE]``."""
    common = _common(generations, created, "chat.completion.chunk", body)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    forms = [ChunkForm(common, index, include_usage) for index in range(len(generations))]
    streams = [choice_events(*pair) for pair in zip(generations, forms, strict=True)]
    async with aclosing(streams[0] if len(streams) == 1 else interleaved(streams)) as events:
        async for event in events:
            yield event
    if include_usage:
        yield b"data: " + to_json({**common, "choices": [], "usage": usage(generations)}) + b"\n\n" + DONE
    else:
        yield DONE


async def choice_events(generation: Generation, form: ChunkForm) -> AsyncGenerator[bytes, None]:
    """The role, a chunk for each piece of text, and the finish reason of one choice."""
    opening = form.event({"role": "assistant", "content": "", "refusal": None}, None)
    wants_logprobs = generation.request.sampling.logprobs is not None
    async with aclosing(generation.pieces()) as pieces:
        async for text, logprobs in pieces:
            if wants_logprobs:
                event = form.event({"content": text}, None, _logprobs(generation, logprobs))
            else:
                event = form.text(text) if text else b""
            if opening or event:
                yield opening + event
                opening = b""
    yield form.event({}, finish_reason(generation))


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
