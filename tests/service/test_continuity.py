"""A stream over several decode workers: nothing twice, nothing missing, "exact" only where it is what it would be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.continuity import Course, Leg, seeded
from diptych.errors import EngineError
from diptych.types import Request, Sampling, TokenChunk, TokenLogprob

PROMPT = (5, 6, 7)


def request(**sampling: object) -> Request:
    options = {"max_tokens": 20, "seed": 3, "temperature": 1.0} | sampling
    return Request(id="r", model="m", prompt=PROMPT, sampling=Sampling(**options))  # type: ignore[arg-type]


def engine(leg: Leg, kv: int = 0, vocabulary: int = 50) -> list[int]:
    """A model whose next token follows from text, KV and, unless greedy, the draws of a seeded sampler."""
    text, sampler, out = [*PROMPT, *leg.given], random.Random(leg.sampling.seed), []
    for _ in range(leg.sampling.max_tokens):
        drawn = 0 if leg.sampling.temperature == 0 else sampler.randrange(1 << 30)
        out.append(random.Random(f"{text} {drawn} {kv}").randrange(vocabulary))
        text.append(out[-1])
    return out


def chunks(tokens: list[int], sizes: random.Random, logprobs: bool) -> list[TokenChunk]:
    """The stream as an engine sends it, several tokens at a time; the finish comes with the last or by itself."""
    cut, made = 0, []
    while cut < len(tokens):
        part = tuple(tokens[cut : cut + sizes.randint(1, 4)])
        cut += len(part)
        chances = tuple(TokenLogprob(token, -float(token)) for token in part) if logprobs else ()
        made.append(TokenChunk(part, chances, "length" if cut == len(tokens) else None))
    if sizes.random() < 0.5:
        made[-1] = TokenChunk(made[-1].tokens, made[-1].logprobs)
        made.append(TokenChunk((), (), "length"))
    return made


@given(
    deaths=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=3),
    greedy=st.booleans(),
    logprobs=st.booleans(),
    shape=st.integers(0, 1000),
)
def test_wherever_workers_die(deaths: list[tuple[int, bool]], greedy: bool, logprobs: bool, shape: int) -> None:
    asked = request(temperature=0.0 if greedy else 0.9)
    undisturbed = engine(Leg((), asked.sampling))
    course, sizes = Course(asked, 256), random.Random(shape)
    got: list[int] = []
    chances: list[int] = []
    legs = list(deaths)
    while not (course.finished or course.all_but_said(1000, frozenset())):
        die_after, same_kv = legs.pop(0) if legs else (10**6, True)
        same_kv |= not course.sent  # what the first token came from is the KV
        leg = course.leg(same_kv=same_kv)
        for number, chunk in enumerate(chunks(engine(leg, kv=0 if same_kv else 1), sizes, logprobs)):
            if number == die_after:
                break
            said = course.take(chunk)
            if said is not None:
                got += said.tokens
                chances += [chance.token for chance in said.logprobs]
            elif course.diverged:
                break
    assert len(got) == asked.sampling.max_tokens
    assert got == course.sent
    assert chances == (got if logprobs else [])
    if course.continuity == "exact":
        assert got == undisturbed
    if all(same_kv for _, same_kv in deaths):
        assert course.continuity in (None, "exact")
        assert got == undisturbed


def test_a_replay_that_differs_goes_on_from_what_was_sent() -> None:
    asked = request()
    course = Course(asked, 256)
    course.leg(same_kv=True)
    course.take(TokenChunk((1, 2, 3)))
    assert course.leg(same_kv=True) == Leg((), asked.sampling)
    assert course.take(TokenChunk((1,))) is None
    assert course.take(TokenChunk((9, 3))) is None
    assert course.diverged
    onwards = course.leg(same_kv=True)
    assert onwards.given == (1, 2, 3)
    assert onwards.sampling.max_tokens == 17
    assert onwards.sampling.seed not in (asked.sampling.seed, None)
    assert course.take(TokenChunk((4,))) == TokenChunk((4,))
    assert course.continuity == "restarted_sampler"
    assert course.leg(same_kv=True).given == (1, 2, 3, 4), "no seed gives this stream again"


def test_a_replay_that_ends_before_what_was_sent_differs_too() -> None:
    course = Course(request(), 256)
    course.leg(same_kv=True)
    course.take(TokenChunk((1, 2, 3)))
    course.leg(same_kv=True)
    assert course.take(TokenChunk((1, 2), (), "stop")) is None
    assert course.diverged
    assert not course.finished


def test_a_long_replay_is_not_worth_the_wait() -> None:
    course = Course(request(), 2)
    course.leg(same_kv=True)
    course.take(TokenChunk((1, 2, 3)))
    assert course.leg(same_kv=True).given == (1, 2, 3)
    assert course.continuity == "restarted_sampler"


@pytest.mark.parametrize("limits", [{"grammar": 'root ::= "a"'}, {"json_schema": "{}"}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_output_is_replayed_or_refused(limits: dict[str, str], temperature: float) -> None:
    course = Course(request(temperature=temperature, **limits), 0)
    course.leg(same_kv=True)
    course.take(TokenChunk((1, 2, 3)))
    assert course.leg(same_kv=False).given == (), "from its beginning, whatever the KV"
    assert course.continuity == "restarted_sampler", "which is not promised to be the same, though it may be"
    assert course.take(TokenChunk((1, 2, 3, 4))) == TokenChunk((4,))
    course.leg(same_kv=True)
    assert course.take(TokenChunk((8,))) is None
    with pytest.raises(EngineError, match="send the request again"):
        course.leg(same_kv=True)


def test_kv_that_is_another_takes_the_promise_back() -> None:
    course = Course(request(), 256)
    course.leg(same_kv=True)
    course.on_other_kv()  # the first attempt's own affair
    course.take(TokenChunk((1,)))
    course.leg(same_kv=True)
    assert course.continuity == "exact"
    course.on_other_kv()
    assert course.continuity == "restarted_sampler"


@pytest.mark.parametrize(
    ("sent", "options", "finish"),
    [
        ((1, 2), {}, None),
        ((1,) * 20, {}, "length"),
        ((1,) * 9, {}, "length"),  # the context is full
        ((1, 0), {}, "stop"),
        ((1, 0), {"ignore_eos": True}, None),
        ((), {}, None),
    ],
)
def test_a_worker_that_died_with_the_last_word_on_its_lips(
    sent: tuple[int, ...], options: dict[str, bool], finish: str | None
) -> None:
    course = Course(request(**options), 256)
    course.leg(same_kv=True)
    course.take(TokenChunk(sent))
    assert course.all_but_said(9, frozenset({0})) == finish


def test_every_sampled_request_has_a_seed() -> None:
    assert seeded(request(seed=None), 1 << 40 | 77).sampling.seed == 77
    assert seeded(request(seed=5), 77).sampling.seed == 5
    assert seeded(request(seed=None, temperature=0.0), 77).sampling.seed is None
