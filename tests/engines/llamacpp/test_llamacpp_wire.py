"""Requests and events as llama-server spells them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from diptych.engines.llamacpp import wire
from diptych.errors import ContextExceeded, EngineError, InvalidRequest
from diptych.types import Sampling


def body(**changes: Any) -> dict[str, Any]:
    return wire.completion((1, 2), Sampling(**{"max_tokens": 5} | changes), 3, reuse=True)


def test_the_slot_is_always_named_and_progress_always_asked_for() -> None:
    asked = body()
    assert (asked["prompt"], asked["id_slot"], asked["n_predict"]) == ([1, 2], 3, 5)
    assert asked["stream"]
    assert asked["return_progress"]
    assert asked["cache_prompt"]
    assert asked["seed"] == 0xFFFFFFFF


def test_greedy_is_the_most_probable_token_and_nothing_else() -> None:
    asked = body(temperature=0, top_p=0.5, top_k=40, seed=7)
    assert (asked["samplers"], asked["top_k"]) == (["top_k"], 1)


@pytest.mark.parametrize(
    ("changes", "chain"),
    [
        ({}, ["temperature"]),
        ({"top_p": 0.9}, ["temperature", "top_p"]),
        ({"top_k": 5, "min_p": 0.1}, ["temperature", "top_k", "min_p"]),
        ({"presence_penalty": 0.5}, ["penalties", "temperature"]),
        ({"frequency_penalty": -0.5, "temperature": 0}, ["penalties", "top_k"]),
    ],
)
def test_only_samplers_that_do_something(changes: dict[str, Any], chain: list[str]) -> None:
    assert body(**changes)["samplers"] == chain


@pytest.mark.parametrize("seed", [0, -1, 2**63, 0xFFFFFFFF])
def test_no_seed_turns_into_the_one_that_means_random(seed: int) -> None:
    assert 0 <= body(seed=seed)["seed"] < 0xFFFFFFFF


def test_constraints_and_logprobs() -> None:
    asked = body(json_schema='{"type":"object"}', logprobs=0)
    assert msgspec.json.decode(msgspec.json.encode(asked))["json_schema"] == {"type": "object"}
    assert asked["n_probs"] == 1
    assert body(grammar='root ::= "a"')["grammar"] == 'root ::= "a"'
    assert "n_probs" not in body()


def test_stop_strings_stay_with_the_gateway() -> None:
    assert "stop" not in body(stop=("x",))


@pytest.mark.parametrize(("kind", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_why_a_stream_ended(kind: str, reason: str) -> None:
    assert wire.finish(wire.Event(stop=True, stop_type=kind)) == reason


def test_impossible_tokens_have_a_logarithm_too() -> None:
    event = wire.event.decode(
        b'{"completion_probabilities":[{"id":4,"logprob":null,"top_logprobs":[{"id":5,"logprob":-1.5}]}]}'
    )
    (found,) = wire.logprobs(event, 1)
    assert (found.token, found.logprob, found.top) == (4, -math.inf, ((5, -1.5),))
    assert wire.logprobs(event, 0)[0].top == ()


@pytest.mark.parametrize(
    ("refused", "status", "kind"),
    [
        (wire.Refusal("too long", "exceed_context_size_error"), 400, ContextExceeded),
        (wire.Refusal("bad grammar", "invalid_request_error"), 400, InvalidRequest),
        (wire.Refusal("no such slot", "invalid_request_error"), 500, EngineError),
        (wire.Refusal("loading", "unavailable_error"), 503, EngineError),
    ],
)
def test_refusals_in_our_own_tree(refused: wire.Refusal, status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=refused.message):
        raise wire.refusal(refused, status)
