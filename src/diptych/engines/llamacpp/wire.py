"""Completion requests and events as llama-server spells them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import ContextExceeded, DiptychError, EngineError, InvalidRequest
from diptych.types import FinishReason, Sampling, TokenLogprob

FINAL_FIELDS = ("stop", "stop_type", "tokens_predicted", "timings")
RANDOM_SEED = 0xFFFFFFFF


class Progress(msgspec.Struct, frozen=True):
    """How far the server's own prefill is. ``cache`` tokens were there before it began."""

    cache: int
    processed: int


class Timings(msgspec.Struct, frozen=True):
    """``cache_n`` prompt tokens were taken from the slot, ``prompt_n`` were computed, in ``prompt_ms``; the tokens
    after the first took ``predicted_ms``."""

    cache_n: int
    prompt_n: int
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0

    @property
    def engine_ms(self) -> float:
        return self.prompt_ms + self.predicted_ms


class Candidate(msgspec.Struct, frozen=True):
    """One token of a distribution. The logarithm of 0 arrives as null."""

    id: int
    logprob: float | None


class Choice(msgspec.Struct, frozen=True):
    """The token that was chosen, and the most probable ones in falling order."""

    id: int
    logprob: float | None
    top_logprobs: tuple[Candidate, ...] = ()


class Refusal(msgspec.Struct, frozen=True):
    """The server's error object."""

    message: str
    type: str = ""


class Event(msgspec.Struct, frozen=True):
    """One event of a stream, or the whole answer of a call that is not streamed.

    ``tokens_predicted`` counts every token so far, also those that were held back. Events with
    ``prompt_progress`` carry a token id that means nothing.
    """

    content: str = ""
    tokens: tuple[int, ...] = ()
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    completion_probabilities: tuple[Choice, ...] = ()
    error: Refusal | None = None

    @property
    def cached(self) -> int | None:
        """Prompt tokens that the server took from the slot, where the event says so."""
        if self.prompt_progress is not None:
            return self.prompt_progress.cache
        return None if self.timings is None else self.timings.cache_n


class SlotReply(msgspec.Struct, frozen=True):
    """The answer to saving, restoring or erasing a slot."""

    n_saved: int = 0
    n_written: int = 0
    n_restored: int = 0
    n_read: int = 0
    n_erased: int = 0


class ErrorReply(msgspec.Struct, frozen=True):
    error: Refusal


event = msgspec.json.Decoder(Event)
slot_reply = msgspec.json.Decoder(SlotReply)
error_reply = msgspec.json.Decoder(ErrorReply)


def completion(
    prompt: Sequence[int], sampling: Sampling, slot: int, *, reuse: bool, stream: bool = True
) -> dict[str, Any]:
    """The body of ``POST /completion``. ``reuse``: what the slot holds of the prompt's start need not be
    computed.

    A streamed call asks for progress: only then does the server notice a hang-up during its own prefill.
    """
    body = {
        "prompt": list(prompt),
        "id_slot": slot,
        "n_predict": sampling.max_tokens,
        "cache_prompt": reuse,
        "ignore_eos": sampling.ignore_eos,
        "return_tokens": True,
        **_choosing(sampling),
        **_constraints(sampling),
    }
    if stream:
        body |= {"stream": True, "return_progress": True, "response_fields": FINAL_FIELDS}
    if sampling.logprobs is not None:
        body["n_probs"] = max(1, sampling.logprobs)
    return body


def distribution(prompt: Sequence[int], vocabulary: int, slot: int, *, reuse: bool) -> dict[str, Any]:
    """The body that asks for the whole next-token distribution, not streamed.

    The server leaves the distribution out when the token chosen is a piece of a character. The bias makes it
    choose a letter; the probabilities it tells are those before any bias or sampler.
    """
    ask = Sampling(max_tokens=1, temperature=0, logprobs=vocabulary, ignore_eos=True)
    return completion(prompt, ask, slot, reuse=reuse, stream=False) | {"logit_bias": [["a", 10_000]]}


def _choosing(sampling: Sampling) -> dict[str, Any]:
    """The sampler chain: only the links that do something, temperature before the cuts (as OpenAI's and
    vLLM's).
    """
    penalties = {
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    chain = ["penalties"] if any(penalties.values()) else []
    if sampling.temperature == 0:
        return {**penalties, "samplers": [*chain, "top_k"], "top_k": 1, "temperature": 1.0}
    chain.append("temperature")
    chain += ["top_k"] if sampling.top_k > 0 else []
    chain += ["top_p"] if sampling.top_p < 1 else []
    chain += ["min_p"] if sampling.min_p > 0 else []
    return {
        **penalties,
        "samplers": chain,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED,
    }


def _constraints(sampling: Sampling) -> dict[str, Any]:
    if sampling.grammar is not None:
        return {"grammar": sampling.grammar}
    if sampling.json_schema is not None:
        return {"json_schema": msgspec.Raw(sampling.json_schema.encode())}
    return {}


def finish(last: Event) -> FinishReason:
    """Why a stream ended: "stop" for an end-of-turn token or a completed grammar."""
    return "stop" if last.stop_type in {"eos", "word"} else "length"


def logprobs(found: Event, alternatives: int) -> tuple[TokenLogprob, ...]:
    """Natural logarithms of the probabilities before any sampler. Held-back tokens have none."""
    return tuple(
        TokenLogprob(
            choice.id,
            _number(choice.logprob),
            tuple((top.id, _number(top.logprob)) for top in choice.top_logprobs[:alternatives]),
        )
        for choice in found.completion_probabilities
    )


def _number(logprob: float | None) -> float:
    return float("-inf") if logprob is None else logprob


def refusal(refused: Refusal, status: int = 400) -> DiptychError:
    """The server's error as one of ours."""
    if refused.type == "exceed_context_size_error":
        return ContextExceeded(refused.message)
    if status == 400 and refused.type == "invalid_request_error":
        return InvalidRequest(refused.message)
    return EngineError(f"llama-server: {refused.message}")
