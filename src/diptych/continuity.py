"""How a stream goes on after its decode worker died, with no token repeated and none missing. Pure: no I/O, no clock.

    sent so far           same KV at hand             KV is gone
    greedy                prompt + sent     exact     prompt + sent      restarted_sampler
    seeded                replay            exact     prompt + sent      restarted_sampler
    constrained           replay            exact     replay, or an error: a grammar has no way in at its middle

A replay asks for the same tokens once more, by the same seed from the same KV, and holds back those that the client
has while they are the same; where one differs, the stream goes on from prompt + sent. A replay of more than a bounded
number of tokens would keep the client waiting for longer than it is worth. "Same KV" is the prefill worker's, kept, or
the decode engine's own reading, done once more by an engine of the same kind.
"""

from __future__ import annotations

import msgspec

from diptych.errors import EngineError
from diptych.types import Continuity, FinishReason, Request, Sampling, TokenChunk, TokenLogprob

SEEDS = 1 << 32


class Leg(msgspec.Struct, frozen=True):
    """What one decode worker is asked for: the tokens after prompt + ``given``."""

    given: tuple[int, ...]
    sampling: Sampling


def seeded(request: Request, drawn: int) -> Request:
    """The request with a seed of its own: ``drawn``, where the client gave none."""
    if request.sampling.seed is not None or request.sampling.temperature == 0:
        return request
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=drawn % SEEDS))


class Course:
    """One request's output as its client has it, over however many decode workers it takes.

    ``sent`` are the tokens that the client has; ``diverged`` says that a replay has left them.
    """

    def __init__(self, request: Request, replay_tokens: int) -> None:
        self.sent: list[int] = []
        self._went_on = False
        self._same_kv = True
        self._same_sampler = True
        self.finished = False
        self.diverged = False
        self._sampling = request.sampling
        self._replay_tokens = replay_tokens
        self._due: tuple[int, ...] = ()

    def leg(self, *, same_kv: bool) -> Leg:
        """What to ask the next decode worker for. Raises EngineError where a constrained stream cannot go on."""
        self.diverged, self._due = False, ()
        if not self.sent:
            return Leg((), self._sampling)
        self._went_on = True
        if self._may_replay(same_kv):
            self._due = tuple(self.sent)
            self._same_kv &= same_kv
            return Leg((), self._sampling)
        if self._constrained:
            raise EngineError(
                "the decode worker was lost, and output that a grammar or schema constrains cannot be resumed from its "
                "middle; send the request again"
            )
        return self._onwards(same_kv)

    @property
    def continuity(self) -> Continuity | None:
        """What may be promised of the whole stream; None where it had no need to go on elsewhere."""
        if not self._went_on:
            return None
        return "exact" if self._same_kv and self._same_sampler else "restarted_sampler"

    def on_other_kv(self) -> None:
        """The engine did not get the KV that it was meant to go on from, and read the prompt itself."""
        self._same_kv &= not self._went_on

    def take(self, chunk: TokenChunk) -> TokenChunk | None:
        """What the client does not have yet of ``chunk``, if anything."""
        if self._due:
            held_back = self._replayed(chunk)
            if held_back is None:
                return None
            chunk = held_back
        self.sent.extend(chunk.tokens)
        self.finished = chunk.finish is not None
        return chunk

    def all_but_said(self, room: int, end_tokens: frozenset[int]) -> FinishReason | None:
        """How a stream ended whose worker died before it could say so. ``room`` is the context left for output."""
        if len(self.sent) >= min(self._sampling.max_tokens, room):
            return "length"
        ended = bool(self.sent) and self.sent[-1] in end_tokens and not self._sampling.ignore_eos
        return "stop" if ended else None

    @property
    def _constrained(self) -> bool:
        return self._sampling.grammar is not None or self._sampling.json_schema is not None

    def _may_replay(self, same_kv: bool) -> bool:
        if not self._same_sampler:
            return False
        if self._constrained:
            return True
        return same_kv and self._sampling.temperature > 0 and len(self.sent) <= self._replay_tokens

    def _onwards(self, same_kv: bool) -> Leg:
        self._same_kv &= same_kv
        self._same_sampler &= self._sampling.temperature == 0
        return Leg(tuple(self.sent), _remaining(self._sampling, len(self.sent)))

    def _replayed(self, chunk: TokenChunk) -> TokenChunk | None:
        """The rest of ``chunk`` behind what is due once more; None when nothing is, or when it differs."""
        count = min(len(chunk.tokens), len(self._due))
        ended_early = chunk.finish is not None and len(chunk.tokens) < len(self._due)
        if chunk.tokens[:count] != self._due[:count] or ended_early:
            self.diverged, self._same_sampler = True, False
            return None
        self._due = self._due[count:]
        if len(chunk.tokens) == count and chunk.finish is None:
            return None
        return msgspec.structs.replace(chunk, tokens=chunk.tokens[count:], logprobs=_behind(chunk, count))


def _behind(chunk: TokenChunk, count: int) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of the tokens from ``count`` on; a token that was held back has none."""
    rest = len(chunk.tokens) - count
    return chunk.logprobs[max(0, len(chunk.logprobs) - rest) :]


def _remaining(sampling: Sampling, sent: int) -> Sampling:
    """What is left of the budget. The seed differs: the same one would draw the same numbers again."""
    seed = None if sampling.seed is None else (sampling.seed + sent) % SEEDS
    return msgspec.structs.replace(sampling, max_tokens=sampling.max_tokens - sent, seed=seed)
