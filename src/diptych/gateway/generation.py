"""One running request seen as text: decoded, cut at stop strings, its tokens counted, its calls told from its words."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from diptych.errors import EngineError
from diptych.gateway.output import OutputReader, Part
from diptych.gateway.ports import ServedModel, Service
from diptych.gateway.text import TextAssembler
from diptych.types import Request, RequestRecord, TokenChunk, TokenLogprob

Ending = Literal["end_turn", "length", "stop_sequence", "tool_use", "guardrail_intervened"]
Piece = tuple[Sequence[Part], tuple[TokenLogprob, ...]]


class Generation:
    """A request on its way through the service. ``ending`` is set once :meth:`pieces` has run to its end.

    ``output_tokens`` counts every token that the engine emitted, the end-of-turn token and those of a matched
    stop string included. Without a ``reader`` every part is text.
    """

    def __init__(
        self, service: Service, model: ServedModel, request: Request, reader: OutputReader | None = None
    ) -> None:
        self.model = model
        self.request = request
        self.ending: Ending = "end_turn"
        self.first_ms = 0
        self._service = service
        self._reader = reader
        self._text = TextAssembler(model.chat.decoder(), model.chat.end_tokens, request.sampling.stop)
        self._started_s = time.monotonic()

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def output_tokens(self) -> int:
        return self._text.tokens_read

    @property
    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started_s) * 1000)

    @property
    def stopped_at(self) -> str | None:
        return self._text.stopped_at

    @property
    def record(self) -> RequestRecord | None:
        return self._service.record(self.request.id)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Parts and log-probabilities of each chunk; there may be no part. Closing it cancels the request.

        Raises what the service raises, and EngineError when the stream ends without saying why.
        """
        text, reader = self._text, self._reader
        async with aclosing(self._service.generate(self.request)) as chunks:
            async for chunk in chunks:
                if not text.tokens_read:
                    self.first_ms = self.elapsed_ms
                said = text.push(chunk.tokens)
                if chunk.finish is None and text.stopped_at is None:
                    yield said if reader is None else reader.push("".join(said)), chunk.logprobs
                    continue
                if chunk.finish is None:
                    self._service.satisfied(self.request.id)
                yield self._last(said, chunk), chunk.logprobs
                return
        raise EngineError("The engine ended the stream without a finish reason.")

    def _last(self, said: list[str], chunk: TokenChunk) -> Sequence[Part]:
        if self.stopped_at is None and (rest := self._text.finish()):
            said.append(rest)
        parts: Sequence[Part] = said
        if self._reader is not None:
            parts = [*self._reader.push("".join(said)), *self._reader.finish()]
        self.ending = self._why(chunk)
        return parts

    def _why(self, chunk: TokenChunk) -> Ending:
        if chunk.finish == "cancelled" and self.stopped_at is None:
            raise EngineError("The request was cancelled before it was complete.")
        if self._reader is not None and self._reader.called and chunk.finish != "length":
            return "tool_use"
        if self.stopped_at is not None:
            return "stop_sequence"
        return "length" if chunk.finish == "length" else "end_turn"

    async def whole(self) -> tuple[list[Part], list[TokenLogprob]]:
        """All parts, and the log-probabilities where they were asked for."""
        made: list[Part] = []
        logprobs: list[TokenLogprob] = []
        async with aclosing(self.pieces()) as pieces:
            async for parts, chances in pieces:
                made.extend(parts)
                logprobs.extend(chances)
        return made, logprobs
