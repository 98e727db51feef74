"""``/v1/completions``: text after a plain prompt, for each prompt ``n`` times."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from diptych.errors import ContextExceeded
from diptych.gateway.generation import Generation
from diptych.gateway.openai.answers import DONE, finish_reason
from diptych.gateway.openai.chat import MAX_CHOICES, choices
from diptych.gateway.openai.parameters import InvalidParameter, check_range, stops_of
from diptych.gateway.openai.shapes import CompletionBody
from diptych.gateway.openai.side_by_side import all_whole, interleaved
from diptych.gateway.ports import ChatFormat, ServedModel, Service
from diptych.gateway.prompting import text_prompt
from diptych.gateway.responses import to_json
from diptych.types import Request, Sampling, TokenLogprob

_DEFAULT_TOKENS = 16
_MOST_TOKENS = 1 << 24
_UNSUPPORTED = ("echo", "suffix", "logit_bias")


async def completion_generations(
    service: Service, body: CompletionBody, model: ServedModel, request_id: str
) -> list[Generation]:
    """A generation for each choice. Raises InvalidRequest or ContextExceeded."""
    _check(body)
    generations: list[Generation] = []
    for index, prompt in enumerate(_prompts(body)):
        tokens = await text_prompt(model, prompt) if isinstance(prompt, str) else _fitting(prompt, model)
        sampling = _sampling(body, model.context_tokens - len(tokens))
        own_id = request_id if index == 0 else f"{request_id}-p{index}"
        request = Request(id=own_id, model=model.id, prompt=tokens, sampling=sampling, operation="Completions")
        generations += choices(service, model, request, body.n or 1, lambda: None)
    return generations


def _prompts(body: CompletionBody) -> list[str | tuple[int, ...]]:
    given = body.prompt
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [tuple(item for item in given if isinstance(item, int))]
    prompts = [tuple(item) if isinstance(item, list) else item for item in given]
    if not prompts or len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidParameter("prompt", f"'prompt' must ask for 1 to {MAX_CHOICES} choices in all.")
    if any(isinstance(item, int) for item in prompts):
        raise InvalidParameter("prompt", "'prompt' mixes token ids with texts. Send one or the other.")
    return [prompt for prompt in prompts if not isinstance(prompt, int)]


def _fitting(tokens: tuple[int, ...], model: ServedModel) -> tuple[int, ...]:
    if not tokens:
        raise InvalidParameter("prompt", "'prompt' is empty. Send at least one token.")
    if len(tokens) >= model.context_tokens:
        raise ContextExceeded(
            f"This model's maximum context length is {model.context_tokens} tokens, but the prompt has "
            f"{len(tokens)} tokens. Shorten the prompt so that at least one output token fits."
        )
    if not all(0 <= token < _MOST_TOKENS for token in tokens):
        raise InvalidParameter("prompt", "'prompt' has a number that is no token id.")
    for token in set(tokens):
        model.chat.token_text(token)
    return tokens


def _sampling(body: CompletionBody, room: int) -> Sampling:
    asked = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return Sampling(
        max_tokens=min(asked, room),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=stops_of(body.stop),
        logprobs=body.logprobs,
        ignore_eos=body.ignore_eos,
    )


def _check(body: CompletionBody) -> None:
    for name in _UNSUPPORTED:
        if getattr(body, name):
            raise InvalidParameter(name, f"'{name}' is not supported by this model. Remove it.")
    if body.best_of not in (None, body.n or 1):
        raise InvalidParameter("best_of", "'best_of' is not supported. Remove it.")
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options", "'stream_options' needs 'stream' to be true.")
    check_range("max_tokens", body.max_tokens, 1)
    check_range("temperature", body.temperature, 0, 2)
    check_range("top_p", body.top_p, 0, 1)
    check_range("n", body.n, 1, MAX_CHOICES)
    check_range("logprobs", body.logprobs, 0, 5)
    check_range("presence_penalty", body.presence_penalty, -2, 2)
    check_range("frequency_penalty", body.frequency_penalty, -2, 2)
    check_range("top_k", body.top_k, 0)
    check_range("min_p", body.min_p, 0, 1)


def _usage(generations: Sequence[Generation], n: int) -> dict[str, int]:
    read = sum(generation.prompt_tokens for generation in generations[::n])
    made = sum(generation.output_tokens for generation in generations)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _logprobs(chat: ChatFormat, chances: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    def text(token: int) -> str:
        return chat.token_text(token).decode("utf-8", "replace")

    tokens = [text(chance.token) for chance in chances]
    offsets = [offset + sum(map(len, tokens[:index])) for index in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [chance.logprob for chance in chances],
        "top_logprobs": [{text(token): logprob for token, logprob in chance.top} for chance in chances],
        "text_offset": offsets,
    }


def _choice(
    generation: Generation, index: int, text: str, chances: Sequence[TokenLogprob], finish: str | None, offset: int = 0
) -> dict[str, Any]:
    wanted = generation.request.sampling.logprobs is not None
    logprobs = _logprobs(generation.model.chat, chances, offset) if wanted else None
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}


def _common(generations: Sequence[Generation], created: int, body: CompletionBody) -> dict[str, Any]:
    return {
        "id": f"cmpl-{generations[0].request.id}",
        "object": "text_completion",
        "created": created,
        "model": body.model,
    }


async def completion_answer(generations: Sequence[Generation], created: int, body: CompletionBody) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    answered = await all_whole(generations)
    made = []
    for index, (generation, (parts, chances)) in enumerate(zip(generations, answered, strict=True)):
        text = "".join(part for part in parts if isinstance(part, str))
        made.append(_choice(generation, index, text, chances, finish_reason(generation)))
    return {**_common(generations, created, body), "choices": made, "usage": _usage(generations, body.n or 1)}


async def completion_events(
    generations: Sequence[Generation], created: int, body: CompletionBody
) -> AsyncGenerator[bytes, None]:
    """The chunks of all choices, the usage chunk if it was asked for, and ``[DONE]``."""
    common = _common(generations, created, body)
    streams = [_choice_events(generation, common, index) for index, generation in enumerate(generations)]
    async with aclosing(streams[0] if len(streams) == 1 else interleaved(streams)) as events:
        async for event in events:
            yield event
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _event({**common, "choices": [], "usage": _usage(generations, body.n or 1)})
    yield DONE


async def _choice_events(generation: Generation, common: dict[str, Any], index: int) -> AsyncGenerator[bytes, None]:
    offset = 0
    async with aclosing(generation.pieces()) as pieces:
        async for parts, chances in pieces:
            texts = [part for part in parts if isinstance(part, str)]
            for text in ["".join(texts)] if chances else texts:
                yield _event({**common, "choices": [_choice(generation, index, text, chances, None, offset)]})
                offset += len(text)
    yield _event({**common, "choices": [_choice(generation, index, "", (), finish_reason(generation), offset)]})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
