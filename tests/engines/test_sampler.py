"""The sampler of engines that have none of their own: each setting does what its name says, and no more."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from diptych.engines.sampler import Sampler, check
from diptych.errors import InvalidRequest
from diptych.types import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))  # token 1 is the likeliest, then 3, 4, 0, 2


def sampler(end_tokens: tuple[int, ...] = (), **settings: Any) -> Sampler:
    return Sampler(Sampling(max_tokens=1, **settings), end_tokens)


def drawn(times: int = 4000, **settings: Any) -> Counter[int]:
    chooses = sampler(seed=11, **settings)
    return Counter(chooses.choose(LOGITS) for _ in range(times))


def test_greedy_takes_the_likeliest() -> None:
    assert {sampler(temperature=0).choose(LOGITS) for _ in range(5)} == {1}


def test_shares_are_the_probabilities() -> None:
    found = drawn(20_000)
    for token, share in enumerate(np.exp(LOGITS)):
        assert found[token] / 20_000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.9}, {0, 1, 3, 4}),
        ({"min_p": 0.45}, {1, 3, 4}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "min_p": 0.6}, {1, 3}),
        ({"temperature": 0.01}, {1}),
    ],
)
def test_cuts(settings: dict[str, float], kept: set[int]) -> None:
    assert set(drawn(**settings)) == kept


def test_temperature_comes_before_the_cuts() -> None:
    """At a high temperature all five are about as likely, and top_p keeps more of them."""
    assert len(drawn(temperature=50.0, top_p=0.7)) == 4


def test_a_seed_says_it_all() -> None:
    first, second, other = (sampler(seed=seed) for seed in (5, 5, 6))
    runs = [[one.choose(LOGITS) for _ in range(50)] for one in (first, second, other)]
    assert runs[0] == runs[1] != runs[2]
    assert [sampler().choose(LOGITS) for _ in range(50)] != [sampler().choose(LOGITS) for _ in range(50)]


def test_penalties_count_what_was_generated() -> None:
    once = sampler(temperature=0, presence_penalty=0.8)
    assert [once.choose(LOGITS) for _ in range(4)] == [1, 3, 4, 1], "each of the best three, then they are level again"
    often = sampler(temperature=0, frequency_penalty=0.3)
    assert Counter(often.choose(LOGITS) for _ in range(40)).most_common()[0][1] < 16
    plain = sampler(temperature=0)
    assert [plain.choose(LOGITS) for _ in range(4)] == [1, 1, 1, 1]


def test_end_tokens_only_where_they_may_end() -> None:
    assert sampler((1,), temperature=0).choose(LOGITS) == 1
    assert sampler((1,), temperature=0, ignore_eos=True).choose(LOGITS) == 3


def test_logprobs_are_those_before_any_sampler() -> None:
    chooses = sampler((1,), temperature=0.1, logprobs=2, ignore_eos=True, presence_penalty=2.0)
    (found,) = chooses.logprobs(LOGITS + 7, 3)
    assert (found.token, found.logprob) == (3, pytest.approx(np.log(0.25), abs=1e-6))
    assert [token for token, _ in found.top] == [1, 3]
    assert found.top[0][1] == pytest.approx(np.log(0.4), abs=1e-6)
    assert sampler(logprobs=0).logprobs(LOGITS, 2)[0].top == ()
    assert sampler().logprobs(LOGITS, 2) == ()


def test_the_logits_stay_as_they_are() -> None:
    before = LOGITS.copy()
    drawn(10, top_k=2, presence_penalty=1.0)
    assert (before == LOGITS).all()


@pytest.mark.parametrize("what", [{"grammar": 'root ::= "a"'}, {"json_schema": "{}"}])
def test_what_it_cannot_do_is_refused(what: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"grammar or schema; llama\.cpp decode can"):
        check(Sampling(max_tokens=1, **what))
