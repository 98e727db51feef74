"""One running request seen as text: decoded, cut at stop strings, its tokens counted."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from diptych.errors import EngineError
from diptych.gateway.ports import ServedModel, Service
from diptych.gateway.text import TextAssembler
from diptych.types import Request, RequestRecord, TokenChunk, TokenLogprob

Ending = Literal["end_turn", "length", "stop_sequence"]
Piece = tuple[str, tuple[TokenLogprob, ...]]


class Generation:
    """A request on its way through the service. ``ending`` is set once :meth:`pieces` has run to its end.

    ``output_tokens`` counts every token that the engine emitted, the end-of-turn token and those of a matched
    stop string included.
    """

    def __init__(self, service: Service, model: ServedModel, request: Request) -> None:
        self.model = model
        self.request = request
        self.output_tokens = 0
        self.ending: Ending = "end_turn"
        self._service = service
        self._text = TextAssembler(model.chat.decoder(), model.chat.end_tokens, request.sampling.stop)
        self._started_s = time.monotonic()

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

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
        """Text and log-probabilities of each chunk; the text may be empty. Closing it cancels the request.

        Raises what the service raises, and EngineError when the stream ends without saying why.
        """
        text = self._text
        async with aclosing(self._service.generate(self.request)) as chunks:
            async for chunk in chunks:
                self.output_tokens += len(chunk.tokens)
                said = text.push(chunk.tokens)
                if text.stopped_at is None and chunk.finish is None:
                    yield said, chunk.logprobs
                    continue
                yield self._last(said, chunk), chunk.logprobs
                return
        raise EngineError("The engine ended the stream without a finish reason.")

    def _last(self, said: str, chunk: TokenChunk) -> str:
        if self.stopped_at is None:
            said += self._text.finish()
        if self.stopped_at is not None:
            self.ending = "stop_sequence"
        elif chunk.finish == "length":
            self.ending = "length"
        elif chunk.finish == "cancelled":
            raise EngineError("The request was cancelled before it was complete.")
        return said

    async def whole(self) -> tuple[str, list[TokenLogprob]]:
        """The complete text, and the log-probabilities where they were asked for."""
        said: list[str] = []
        logprobs: list[TokenLogprob] = []
        async with aclosing(self.pieces()) as pieces:
            async for text, chances in pieces:
                said.append(text)
                logprobs.extend(chances)
        return "".join(said), logprobs
