"""One request under a guardrail: its input judged before the model reads it, its output before the client does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import groupby

import msgspec

from diptych.gateway.generation import Generation, Piece
from diptych.gateway.guardrails.policy import Finding, Guardrail, blocks, masked, masks
from diptych.gateway.guardrails.window import Window
from diptych.gateway.output import OutputReader, Part
from diptych.gateway.ports import ServedModel, Service
from diptych.types import Request, TokenLogprob


class Assessment(msgspec.Struct):
    """What was found in ``characters`` characters, and how many there were in all."""

    findings: list[Finding] = []
    characters: int = 0
    total: int = 0

    @property
    def blocked(self) -> bool:
        return blocks(self.findings)

    @property
    def masked(self) -> bool:
        return masks(self.findings)


class Moderation:
    """``asynchronous``: the output leaves at once and is judged meanwhile; it is then not masked, as in Bedrock."""

    def __init__(self, guardrail: Guardrail, *, trace: str = "disabled", asynchronous: bool = False) -> None:
        self.guardrail = guardrail
        self.trace = trace
        self.asynchronous = asynchronous
        self.input = Assessment()
        self.output: Assessment | None = None
        self.model_said = ""

    def read(self, text: str, *, guarded: bool = True) -> str:
        """A text of the input as the model may see it; what is not guarded is only counted."""
        self.input.total += len(text)
        if not guarded:
            return text
        found = self.guardrail.find(text)
        self.input.findings += found
        self.input.characters += len(text)
        return masked(text, found)

    @property
    def intervened(self) -> bool:
        """Whether the client gets something else than it would without."""
        out = self.output
        return self.input.blocked or self.input.masked or (out is not None and (out.blocked or out.masked))

    @property
    def reason(self) -> str:
        """Bedrock's sentence for what was done."""
        if self.input.blocked or (self.output is not None and self.output.blocked):
            return "Guardrail blocked."
        return "Guardrail masked." if self.intervened else "No action."

    @property
    def blocked_input(self) -> str:
        return self.guardrail.settings.blocked_input

    @property
    def blocked_output(self) -> str:
        return self.guardrail.settings.blocked_output


class Answered(Generation):
    """A request whose input was blocked: the guardrail answers, and no model runs."""

    def __init__(self, service: Service, model: ServedModel, request: Request, moderation: Moderation) -> None:
        nothing = msgspec.structs.replace(request, prompt=())
        super().__init__(service, model, nothing)
        self.ending = "guardrail_intervened"
        self.moderation = moderation

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        yield [self.moderation.blocked_input], ()


class Guarded(Generation):
    """A generation whose text passes a guardrail. Reasoning and calls pass unjudged, as in Bedrock."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        request: Request,
        reader: OutputReader | None,
        moderation: Moderation,
    ) -> None:
        super().__init__(service, model, request, reader)
        self.moderation = moderation
        moderation.output = self._judged = Assessment()
        self._window = Window(moderation.guardrail)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(super().pieces()) as pieces:
            async for parts, logprobs in pieces:
                passed = [kept for part in parts for kept in self._pass(part)]
                if self._judged.blocked:
                    self._stop()
                    yield [*passed, self.moderation.blocked_output], ()
                    return
                yield passed, logprobs
        rest = self._end_of_text()
        if self._judged.blocked:
            self._stop()
            rest = [*rest, self.moderation.blocked_output]
        elif self._judged.masked and self.ending != "tool_use":
            self.ending = "guardrail_intervened"
        yield rest, ()

    def _pass(self, part: Part) -> list[Part]:
        """What may leave of ``part``. Text ends where something else begins."""
        if not isinstance(part, str):
            return [*self._end_of_text(), part]
        self._count(part)
        said = self._window.push(part)
        self._judged.findings += self._found()
        return self._said(part if self.moderation.asynchronous and not self._judged.blocked else said)

    def _end_of_text(self) -> list[Part]:
        said = self._window.finish()
        self._judged.findings += self._found()
        self._window = Window(self.moderation.guardrail)
        return [] if self.moderation.asynchronous else self._said(said)

    def _found(self) -> list[Finding]:
        """What the window has found since; without masks where text has already left."""
        found, self._window.findings = self._window.findings, []
        if self.moderation.asynchronous:
            return [finding for finding in found if finding.rule.action != "anonymize"]
        return found

    def _said(self, text: str) -> list[Part]:
        return [text] if text else []

    def _count(self, text: str) -> None:
        self._judged.characters += len(text)
        self._judged.total += len(text)
        if self.moderation.trace != "disabled":
            self.moderation.model_said += text

    def _stop(self) -> None:
        """The client gets no more: the request is over, and not cancelled."""
        self.ending = "guardrail_intervened"
        self._service.satisfied(self.request.id)

    async def whole(self) -> tuple[list[Part], list[TokenLogprob]]:
        """All parts, masked; the guardrail's message alone where the text is blocked."""
        made: list[Part] = []
        logprobs: list[TokenLogprob] = []
        async with aclosing(super().pieces()) as pieces:
            async for parts, chances in pieces:
                made.extend(parts)
                logprobs.extend(chances)
        passed = list(self._judge(made))
        if self._judged.blocked:
            self.ending = "guardrail_intervened"
            return [self.moderation.blocked_output], []
        if self._judged.masked and self.ending != "tool_use":
            self.ending = "guardrail_intervened"
        return passed, logprobs

    def _judge(self, parts: Sequence[Part]) -> Iterator[Part]:
        for is_text, run in groupby(parts, lambda part: isinstance(part, str)):
            if not is_text:
                yield from run
                continue
            text = "".join(part for part in run if isinstance(part, str))
            self._count(text)
            found = self.moderation.guardrail.find(text)
            self._judged.findings += found
            yield masked(text, found)
