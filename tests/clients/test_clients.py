"""The same things asked through every client: an answer, a stream, a conversation, a call, an error, a wrong key."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from adapters import CITIES, NAMES, WEATHER, Client, Lacking, Server, connect

from support.fleet import Fleet, proven
from support.questions import question

TOKENS = 16
_numbers = itertools.count(500)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def long_prompt() -> str:
    """A text that nobody has asked before, long enough for the pair to be the faster way."""
    return question(next(_numbers), 110)


@contextmanager
def what_it_has() -> Iterator[None]:
    try:
        yield
    except Lacking as lacking:
        pytest.skip(str(lacking))
    except Exception as refused:
        if "Malformed input request: Object" in str(refused):
            pytest.skip("InvokeModel does not take Claude's native body yet")
        raise


@pytest.fixture
def client(name: str, server: Server) -> Client:
    with what_it_has():
        return connect(name, server)


def asked(fleet: Fleet, ask: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What ``ask`` gives, and the record of the one request that it made."""
    before = {record["id"] for record in fleet.records()}
    with what_it_has():
        answer = ask()
    (record,) = [record for record in fleet.records() if record["id"] not in before]
    return answer, fleet.record(record["id"])


def test_an_answer_to_a_long_prompt_comes_from_kv_that_moved(fleet: Fleet, client: Client) -> None:
    said, record = asked(fleet, lambda: client.ask([("user", long_prompt())], TOKENS))
    assert said.strip()
    assert 0 < record["output_tokens"] <= TOKENS
    assert proven(record), record


def test_a_stream_comes_token_by_token(fleet: Fleet, client: Client) -> None:
    said, record = asked(fleet, lambda: client.stream([("user", long_prompt())], TOKENS))
    assert "".join(said).strip()
    assert record["output_tokens"] / 2 <= len(said) <= record["output_tokens"]
    assert proven(record), record


def test_a_conversation_of_several_turns(fleet: Fleet, client: Client) -> None:
    opening = [("user", "My name is Ada. Remember it."), ("assistant", "Hello Ada.")]
    one, first = asked(fleet, lambda: client.ask([*opening, ("user", "What is my name?")], TOKENS))
    alone, second = asked(fleet, lambda: client.ask([("user", "What is my name?")], TOKENS))
    assert first["prompt_tokens"] > second["prompt_tokens"] + 10
    assert one.strip()
    assert one != alone
    proven(first)
    proven(second)


def test_a_call_that_must_be_made(fleet: Fleet, client: Client) -> None:
    text = f"{long_prompt()} What is the weather in Rome?"
    (tool, arguments), record = asked(fleet, lambda: client.call([("user", text)]))
    assert tool == WEATHER
    assert arguments["city"] in CITIES
    assert proven(record), record


def test_a_model_that_is_not_there(name: str, server: Server) -> None:
    with what_it_has():
        lost = connect(name, server._replace(model="amazon.nova-pro-v1:0"))
    with pytest.raises(Exception, match=r"model identifier is invalid|Served are"):
        lost.ask([("user", "Hello")], 4)


def test_a_wrong_key(fleet: Fleet, name: str, server: Server) -> None:
    before = len(fleet.records())
    with what_it_has():
        stranger = connect(name, server._replace(secret_access_key="wrong", api_key="wrong"))
    with pytest.raises(Exception, match=r"(?i)signature|api.key"):
        stranger.ask([("user", "Hello")], 4)
    assert len(fleet.records()) == before
