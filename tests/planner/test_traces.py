"""Traces: the forms that are read, and the line and cure of what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diptych.errors import ConfigError
from diptych.planner.traces import load

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:03.9799600,3180,8
2023-11-16 18:17:05.0319600,110,27
"""
BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.5,ChatGPT,472,18,490,Conversation log
45,2,1.0,GPT-4,1087,230,1317,API log
47,3,1.0,GPT-4,20,0,20,API log
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 700, "output_length": 4, "hash_ids": [0, 9]},
    {"timestamp": 3000, "input_length": 70, "output_length": 0, "hash_ids": [8]},
]
RECORDS = [
    {"id": "a", "started_at": 100.5, "prompt_tokens": 12, "output_tokens": 3, "status": "finished"},
    {"id": "b", "started_at": 101.5, "prompt_tokens": 20, "output_tokens": 9, "status": "finished"},
]


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "trace"
    file.write_text(text)
    return str(file)


def lines(objects: list[dict[str, object]]) -> str:
    return "".join(json.dumps(o) + "\n" for o in objects)


def test_azure(tmp_path: Path):
    t = load(write(tmp_path, AZURE))
    assert list(t.arrival_s) == pytest.approx([0.0, 0.0, 1.052], abs=1e-6)
    assert (list(t.input_tokens), list(t.output_tokens)) == ([4808, 3180, 110], [10, 8, 27])


def test_burstgpt_without_its_failures(tmp_path: Path):
    t = load(write(tmp_path, BURST))
    assert (list(t.arrival_s), list(t.input_tokens), list(t.output_tokens)) == ([0.0, 40.0], [472, 1087], [18, 230])


def test_mooncake_with_prefixes(tmp_path: Path):
    t = load(write(tmp_path, lines(MOONCAKE)))
    assert list(t.arrival_s) == [0.0, 0.0, 3.0]
    assert list(t.blocks) == [(0, 1, 2), (0, 9), (8,)]
    assert list(t.output_tokens) == [500, 4, 1]


def test_our_own_records(tmp_path: Path):
    t = load(write(tmp_path, lines(RECORDS)))
    assert (list(t.arrival_s), list(t.input_tokens)) == ([0.0, 1.0], [12, 20])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE.replace("GeneratedTokens", "Generated"), r":1: column 'GeneratedTokens' is missing; an Azure trace has"),
        (AZURE.replace("18:17:05", "18:17:01"), r":4: time goes back by 2\.948 s; sort the rows"),
        (AZURE.replace("3180,8", "3180,-8"), r":3: output length is negative"),
        (AZURE.replace("3180,8", "nan,8"), r":3: prompt length is nan"),
        (AZURE.replace("3180,8", "3180"), r":3: a field is missing or not a number; mend"),
        (AZURE.replace("3180", "0"), r":3: the prompt has no tokens"),
        (AZURE.replace("2023-11-16 18:17:05.0319600", "yesterday"), r":4: a field is missing or not a number"),
        (BURST.replace("\n45,", "\n-45,"), r":3: time is negative"),
        (BURST.replace("\n45,", "\ninf,"), r":3: time is inf"),
        (BURST.replace("Response tokens", "Answer"), r":1: column 'Response tokens' is missing"),
        ("a,b\n1,2\n", r":1: not a header that is known; known are TIMESTAMP"),
        (AZURE.split("\n", maxsplit=1)[0] + "\n", r"no requests in it"),
        ("", r":1: not a header"),
        (
            lines([*MOONCAKE, {"timestamp": 10, "input_length": 5, "output_length": 1, "hash_ids": []}]),
            r":4: time goes back",
        ),
        (lines([{"timestamp": 0, "input_length": 5}]), r":1: key 'output_length' is missing; a line has"),
        (lines([{"timestamp": float("nan"), "input_length": 5, "output_length": 1}]), r":1: a value is not a number"),
        (lines(MOONCAKE) + '{"timestamp": 4000, "input', r":4: not a JSON object"),
        (lines([*MOONCAKE, {"timestamp": 4000, "input_length": 5, "output_length": 1}]), r"some lines have hash_ids"),
        (lines([{"timestamp": "soon", "input_length": 5, "output_length": 1}]), r":1: a value is not a number"),
    ],
)
def test_a_bad_trace_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["nowhere.csv", "poisson:rate=x", "poisson:rate=0", "poisson:speed=3", "gamma:requests=0", "azure-conv:input=4"],
)
def test_a_bad_description_is_refused(spec: str):
    with pytest.raises(ConfigError):
        load(spec)


def test_poisson_and_gamma_have_the_rate_and_the_spread_asked_for():
    steady, bursty = load("poisson:rate=5,requests=40000"), load("gamma:rate=5,requests=40000,cv=3")
    for t, cv in ((steady, 1.0), (bursty, 3.0)):
        gaps = np.diff(t.arrival_s)
        assert gaps.mean() == pytest.approx(0.2, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_shapes_have_the_statistics_of_the_traces_that_they_are_named_for():
    t = load("azure-conv:requests=40000")
    assert np.median(t.input_tokens) == pytest.approx(1020, rel=0.03)
    assert np.percentile(t.input_tokens, 99) == pytest.approx(4142, rel=0.06)
    assert np.median(t.output_tokens) == pytest.approx(129, rel=0.03)


def test_stretching_cutting_and_repeating(tmp_path: Path):
    t = load(write(tmp_path, lines(MOONCAKE)))
    assert t.at_rate(2.0).rate == pytest.approx(2.0)
    assert len(t.head(2)) == 2
    longer = t.sized(8)
    assert len(longer) == 8
    assert longer.rate == pytest.approx(t.rate, rel=0.5)
    assert not set(longer.blocks[0]) & set(longer.blocks[3])  # no round shares prefixes with another


def test_the_shared_traces(data: Path):
    conversation, code = (
        load(str(data / "traces/mooncake_conversation.jsonl")),
        load(str(data / "traces/azure_llm_2023_code.csv")),
    )
    assert (len(conversation), sum(conversation.output_tokens)) == (12031, 4_122_048)
    assert len(set(conversation.arrival_s)) == 1180
    assert len(code) == 8819
