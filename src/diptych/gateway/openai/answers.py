"""Chat completions' answers: the whole one and the stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from diptych.gateway.calls import CallBegan, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.openai.shapes import ChatBody
from diptych.gateway.openai.side_by_side import all_whole, interleaved
from diptych.gateway.output import Part, Reasoning
from diptych.gateway.ports import ChatFormat
from diptych.gateway.responses import to_json
from diptych.types import TokenLogprob

DONE = b"data: [DONE]\n\n"
_FINISH = {
    "end_turn": "stop", "stop_sequence": "stop", "length": "length", "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
}  # fmt: skip


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


def _common(generations: Sequence[Generation], created: int, kind: str, body: ChatBody) -> dict[str, Any]:
    common: dict[str, Any] = {
        "id": f"chatcmpl-{generations[0].request.id}",
        "object": kind,
        "created": created,
        "model": body.model or generations[0].model.id,
    }
    if body.service_tier is not None:
        common["service_tier"] = "default" if body.service_tier == "auto" else body.service_tier
    return common


async def chat_answer(generations: Sequence[Generation], created: int, body: ChatBody) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    answered = await all_whole(generations)
    choices = [
        {
            "index": index,
            "message": message(parts),
            "logprobs": _logprobs(generation, logprobs),
            "finish_reason": finish_reason(generation),
        }
        for index, (generation, (parts, logprobs)) in enumerate(zip(generations, answered, strict=True))
    ]
    return {
        **_common(generations, created, "chat.completion", body),
        "choices": choices,
        "usage": usage(generations),
    }


def message(parts: Sequence[Part]) -> dict[str, Any]:
    """The assistant's message of a whole answer."""
    text = "".join(part for part in parts if isinstance(part, str))
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, CallBegan):
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, CallInput):
            calls[-1]["function"]["arguments"] += part.json
    made: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if thought:
        made["reasoning_content"] = thought
    return {**made, "tool_calls": calls} if calls else made


def _logprobs(generation: Generation, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if generation.request.sampling.logprobs is None:
        return None
    return {"content": token_logprobs(generation.model.chat, logprobs), "refusal": None}


class ChunkForm:
    """The bytes of one choice's chunks: for text, everything but the text is made once."""

    def __init__(self, common: dict[str, Any], index: int, include_usage: bool) -> None:
        self._usage = {"usage": None} if include_usage else {}
        self._common, self._index = common, index
        self._call = -1
        self._head, self._tail = self.event({"content": "\0"}, None).split(to_json("\0"))

    def event(self, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return b"data: " + to_json({**self._common, "choices": [choice], **self._usage}) + b"\n\n"

    def part(self, part: Part) -> bytes:
        """The chunk of one part."""
        if isinstance(part, str):
            return self._head + to_json(part) + self._tail
        delta = self.delta(part)
        return self.event(delta, None) if delta else b""

    def delta(self, part: Part) -> dict[str, Any]:
        """The part as a delta; empty for the end of a call, which has none."""
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, Reasoning):
            return {"reasoning_content": part.text}
        if isinstance(part, CallBegan):
            self._call += 1
            function = {"name": part.name, "arguments": ""}
            return {"tool_calls": [{"index": self._call, "id": part.id, "type": "function", "function": function}]}
        if isinstance(part, CallInput):
            return {"tool_calls": [{"index": self._call, "function": {"arguments": part.json}}]}
        return {}


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
    """The role, a chunk for each part, and the finish reason of one choice."""
    opening = form.event({"role": "assistant", "content": "", "refusal": None}, None)
    wants_logprobs = generation.request.sampling.logprobs is not None
    async with aclosing(generation.pieces()) as pieces:
        async for parts, logprobs in pieces:
            if wants_logprobs:
                event = _with_logprobs(generation, form, parts, logprobs)
            elif len(parts) == 1:
                event = form.part(parts[0])
            else:
                event = b"".join([form.part(part) for part in parts])
            if opening or event:
                yield opening + event
                opening = b""
    yield form.event({}, finish_reason(generation))


def _with_logprobs(
    generation: Generation, form: ChunkForm, parts: Sequence[Part], logprobs: Sequence[TokenLogprob]
) -> bytes:
    """The log-probabilities of a chunk's tokens go with its first event."""
    deltas = [form.delta(part) for part in parts] or [{"content": ""}]
    first = form.event(deltas[0], None, _logprobs(generation, logprobs))
    return first + b"".join(form.event(delta, None) for delta in deltas[1:] if delta)
