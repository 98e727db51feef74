"""A service that does what the last user message tells it to, so that a test can drive a separate process.

The message is a script, one command a line; anything else is answered with a greeting.

    say TEXT        emit the text, one token a chunk
    together TEXT   emit the text as one chunk
    wait SECONDS
    forever TEXT    emit the text again and again, yielding to the event loop in between
    raise ERROR     raise that class of diptych.errors (or "Bug": a plain RuntimeError)
    vanish          end the stream without a finish reason
    cut             finish with "length"
    echo FIELD      emit that field of the request (a dotted path) as JSON
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from diptych import errors
from diptych.types import Request, RequestRecord, TokenChunk, TokenLogprob
from support.chat import END, ChatML

_LAST_USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
Step = tuple[int, ...] | float | Exception | str


ALIASES = (
    "amazon.nova-micro-v1:0",
    "meta.llama3-1-8b-instruct-v1:0",
    "mistral.mixtral-8x7b-instruct-v0:1",
    "deepseek.r1-v1:0",
    "openai.gpt-oss-20b-1:0",
    "anthropic.claude-3-haiku-20240307-v1:0",
)


class ScriptedModel(msgspec.Struct, frozen=True):
    id: str
    chat: ChatML
    aliases: tuple[str, ...] = ()
    context_tokens: int = 4096
    created: int = 1_750_000_000


class ScriptedService:
    """Counts what was started, cancelled and finished; ``running`` must come back to 0."""

    def __init__(self, models: Sequence[ScriptedModel] | None = None) -> None:
        chat = ChatML()
        self._models = models or (
            ScriptedModel("tiny", chat, ALIASES),
            ScriptedModel("short", chat, context_tokens=64),
        )
        self._records: dict[str, RequestRecord] = {}
        self.running = 0
        self.ended: dict[str, int] = {"finished": 0, "failed": 0, "cancelled": 0}
        self.requests: list[Request] = []
        self.handoffs: dict[str, object] = {}

    def models(self) -> Sequence[ScriptedModel]:
        return self._models

    def satisfied(self, request_id: str) -> None:
        self._records[request_id].status = "finished"

    def record(self, request_id: str) -> RequestRecord | None:
        return self._records.get(request_id)

    def records(self, limit: int) -> list[RequestRecord]:
        return list(reversed(self._records.values()))[:limit]

    def health(self) -> Mapping[str, Any]:
        return {"status": "ok", "running": self.running, "ended": self.ended, "handoffs": self.handoffs}

    async def generate(self, request: Request) -> AsyncGenerator[TokenChunk, None]:
        record = RequestRecord(
            id=request.id,
            model=request.model,
            placement="aggregated",
            operation=request.operation,
            prompt_tokens=len(request.prompt),
            served_latency=request.latency if len(request.prompt) < 1000 else "standard",
        )
        self._records[request.id] = record
        self.requests.append(request)
        self.running += 1
        record.status = "cancelled"
        try:
            async for chunk in self._play(request):
                record.output_tokens += len(chunk.tokens)
                if chunk.finish:
                    record.status, record.finish = "finished", chunk.finish
                yield chunk
        except Exception as error:
            record.status, record.error = "failed", str(error)
            raise
        finally:
            self.running -= 1
            self.ended[record.status] += 1

    async def _play(self, request: Request) -> AsyncGenerator[TokenChunk, None]:
        chat = next(model.chat for model in self._models if model.id == request.model)
        room = request.sampling.max_tokens
        for step in _steps(request, chat):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            if step == "vanish":
                return
            if step == "cut":
                yield TokenChunk((), finish="length")
                return
            assert not isinstance(step, str)
            tokens = step[:room]
            room -= len(tokens)
            yield TokenChunk(tokens, _logprobs(request, tokens), "length" if room == 0 else None)
            if room == 0:
                return
        end = next(iter(chat.end_tokens))
        yield TokenChunk((end,), _logprobs(request, (end,)), "stop")


def _logprobs(request: Request, tokens: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
    if (wanted := request.sampling.logprobs) is None:
        return ()
    return tuple(
        TokenLogprob(token, -0.25, tuple(((token + other) % 256, -0.25 - other) for other in range(wanted)))
        for token in tokens
    )


def _steps(request: Request, chat: ChatML) -> Any:
    prompt = chat.text(request.prompt)
    said = _LAST_USER.findall(prompt)
    script = said[-1].rpartition("</tool_response>\n")[2] if said else prompt.removesuffix(END)
    if script.split(" ", 1)[0].strip() not in _COMMANDS:
        script = "say Hello from the other side."
    for line in script.split("\n"):
        command, _, rest = line.partition(" ")
        if command in _COMMANDS:
            yield from _COMMANDS[command](rest, request, chat)


def _say(text: str, request: Request, chat: ChatML) -> Any:
    return ((token,) for token in chat.encode(text.replace("\\n", "\n")))


def _forever(text: str, request: Request, chat: ChatML) -> Any:
    while True:
        yield from _say(text, request, chat)
        yield 0.002


def _raise(name: str, request: Request, chat: ChatML) -> Any:
    if name == "Bug":
        yield RuntimeError("secret detail")
    else:
        yield getattr(errors, name)(f"the scripted {name}.")


def _echo(path: str, request: Request, chat: ChatML) -> Any:
    value = msgspec.to_builtins(request)
    for name in path.split("."):
        value = value.get(name)
    return _say(msgspec.json.encode(value).decode(), request, chat)


_COMMANDS: dict[str, Callable[[str, Request, ChatML], Any]] = {
    "say": _say,
    "together": lambda text, request, chat: iter([chat.encode(text)]),
    "wait": lambda seconds, request, chat: iter([float(seconds)]),
    "forever": _forever,
    "raise": _raise,
    "vanish": lambda rest, request, chat: iter(["vanish"]),
    "cut": lambda rest, request, chat: iter(["cut"]),
    "echo": _echo,
}
