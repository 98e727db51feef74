"""Clients that keep a fleet busy, and what became of each of their requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
import msgspec

from support.likeness import Reference
from support.questions import question


def chat_body(text: str, output_tokens: int, *, pair: bool, stream: bool = True) -> dict[str, Any]:
    """A greedy request of exactly so many output tokens; ``pair`` asks for the fast class."""
    return {
        "model": "any",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": stream,
        "service_tier": "priority" if pair else "default",
    }


class Asked(msgspec.Struct):
    """One streamed request as its client saw it. ``tokens`` are those that have log-probabilities, which halves of
    characters have not. ``error`` is the dialect's, ``broken`` a connection that ended;
    ``silence`` is the longest time in which nothing came, in seconds."""

    number: int
    began: float
    status: int = 0
    request_id: str = ""
    tokens: list[str] = []
    text: str = ""
    gaps: list[float] = []
    finish: str | None = None
    error: dict[str, Any] | None = None
    broken: str | None = None
    ended: float = 0.0
    silence: float = 0.0

    def heard(self) -> None:
        """Something came."""
        now = time.monotonic()
        self.silence = max(self.silence, now - (self.ended or self.began))
        self.ended = now


def ask(
    url: str,
    number: int,
    words: int,
    output_tokens: int,
    *,
    pair: bool,
    on_token: Callable[[Asked], object] = lambda _: None,
    **options: Any,
) -> Asked:
    """Streams one answer to its end, whatever that is. ``options`` go into the body; ``on_token`` hears of lines."""
    asked = Asked(number, time.monotonic())
    body = chat_body(question(number, words), output_tokens, pair=pair) | options
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            asked.status = answer.status_code
            asked.request_id = answer.headers["x-request-id"]
            if answer.status_code != 200:
                asked.error = json.loads(answer.read())["error"]
            for line in answer.iter_lines() if asked.error is None else ():
                asked.heard()
                _take(asked, line)
                if asked.tokens:
                    on_token(asked)
    except httpx.TransportError as exc:
        asked.broken = repr(exc)
    asked.heard()
    return asked


def _take(asked: Asked, line: str) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line[6:])
    if "error" in event:
        asked.error = event["error"]
        return
    for choice in event["choices"]:
        asked.text += choice["delta"].get("content") or ""
        for found in (choice["logprobs"] or {}).get("content") or ():
            asked.tokens.append(found["token"])
            top = found["top_logprobs"]
            asked.gaps.append(top[0]["logprob"] - top[1]["logprob"])
        asked.finish = choice["finish_reason"] or asked.finish


def reference(url: str, number: int, words: int, output_tokens: int) -> Reference:
    """What decode alone answers."""
    asked = ask(url, number, words, output_tokens, pair=False)
    assert (asked.error, asked.broken, len(asked.tokens)) == (None, None, output_tokens), asked
    return Reference(asked.tokens, asked.gaps)


class Load:
    """So many clients that ask one question after another, until the block ends."""

    def __init__(
        self, url: str, numbers: Sequence[int], words: int, output_tokens: int, clients: int, first: int = 0
    ) -> None:
        """The clients begin at the ``first`` of the numbers."""
        self._url, self._numbers, self._words, self._output_tokens = url, numbers, words, output_tokens
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(first + i,), daemon=True) for i in range(clients)]
        self.done: list[Asked] = []

    def _client(self, first: int) -> None:
        turn = first
        while not self._over.is_set():
            number = self._numbers[turn % len(self._numbers)]
            asked = ask(self._url, number, self._words, self._output_tokens, pair=True)
            self.done.append(asked)
            turn += 1
            if asked.error or asked.broken:
                time.sleep(0.1)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"
