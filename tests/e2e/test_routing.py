"""Where requests go: by prediction, by mode, and with what is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.conftest import tiny_settings
from support.fleet import Fleet, proven
from support.load import question

pytestmark = pytest.mark.e2e

BLOCK = 64  # tokens: the prefill worker's cache keeps whole blocks


def converse(fleet: Fleet, text: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer and the record."""
    return _converse(fleet, [{"role": "user", "content": [{"text": text}]}], **more)


def _converse(fleet: Fleet, messages: list[dict[str, Any]], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    body = {"messages": messages, "inferenceConfig": {"maxTokens": 32, "temperature": 0}, **more}
    answer = httpx.post(f"{fleet.url}/model/any/converse", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    record = fleet.record(answer.headers["x-request-id"])
    proven(record)
    return answer.json(), record


def test_by_prediction(fleet: Fleet) -> None:
    """Where it is predicted to be faster: a long prompt to the pair, a short one to decode alone, unless a tie."""
    for words in (1, 330, 2, 340, 8, 200):
        _, record = converse(fleet, question(words, words))
        predicted = record["predicted_ms"]
        alone, pair = predicted["aggregated"], predicted["disaggregated"]
        assert record["placement"] == ("disaggregated" if pair < alone else "aggregated"), record
        assert proven(record) == (pair < alone)
        assert pair < alone if words > 100 else alone < pair * 1.2, record


def test_opt_in(tiny_fleet: Fleet) -> None:
    """Only who asks for it is served by the pair, and is told."""
    text = question(800, 120)
    answer, record = converse(tiny_fleet, text)
    assert "performanceConfig" not in answer
    assert record["placement"] == "aggregated"
    assert record["predicted_ms"]["disaggregated"] is None
    answer, record = converse(tiny_fleet, text, performanceConfig={"latency": "standard"})
    assert (answer["performanceConfig"]["latency"], record["placement"]) == ("standard", "aggregated")
    answer, record = converse(tiny_fleet, question(801, 120), performanceConfig={"latency": "optimized"})
    assert answer["performanceConfig"]["latency"] == record["served_latency"] == "optimized"
    assert proven(record)


def test_no_pair_no_optimized(tmp_path: Path, tiny_gguf: Path) -> None:
    """A fleet of decode workers alone serves the same requests, and says what it served."""
    settings = tiny_settings(tiny_gguf).replace("[[prefill]]\n", "")
    fleet = Fleet(tmp_path, f"prefill = []\n{settings}")
    try:
        answer, record = converse(fleet, question(802, 120), performanceConfig={"latency": "optimized"})
        assert answer["performanceConfig"]["latency"] == "standard"
        assert (record["placement"], record["predicted_ms"]["disaggregated"]) == ("aggregated", None)
        assert fleet.health()["pairs"] == []
    finally:
        assert fleet.stop() == 0


def test_a_second_turn_computes_its_suffix(fleet: Fleet) -> None:
    """Both halves remember: the next turn of a conversation reads only what is new."""
    messages = [{"role": "user", "content": [{"text": question(900, 200)}]}]
    answer, first = _converse(fleet, messages)
    assert proven(first)
    assert first["cached_tokens"] == 0
    messages += [answer["output"]["message"], {"role": "user", "content": [{"text": question(901, 8)}]}]
    _, second = _converse(fleet, messages)
    new = second["prompt_tokens"] - second["cached_tokens"]
    assert second["cached_tokens"] > first["prompt_tokens"] - BLOCK, second
    assert new < second["prompt_tokens"] - first["prompt_tokens"] + BLOCK, second


def test_a_prefix_in_the_prefill_worker(tiny_fleet: Fleet) -> None:
    """The pair, asked twice for prompts with the same beginning, computes that once and hands over all of it."""
    text = question(910, 150)
    optimized = {"performanceConfig": {"latency": "optimized"}}
    _, first = converse(tiny_fleet, text, **optimized)
    for number in range(920, 932):  # the decode engine's slots hold others by then
        converse(tiny_fleet, question(number, 40), **optimized)
    _, second = converse(tiny_fleet, f"{text} {question(911, 5)}", **optimized)
    assert proven(first)
    assert proven(second)
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > first["prompt_tokens"] / 2
    assert second["kv_tokens"] == second["prompt_tokens"] - 1
