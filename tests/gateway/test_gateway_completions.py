from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from support.scripted import ScriptedService


def test_a_completion(chat: Any) -> None:
    made = chat.completions.create(model="tiny", prompt="say ab🎉", max_tokens=50, stop=["zz"])
    assert (made.choices[0].text, made.choices[0].finish_reason) == ("ab🎉", "stop")
    assert made.usage.completion_tokens == 7
    assert chat.completions.create(model="tiny", prompt="forever a").usage.completion_tokens == 16


def test_a_streamed_completion(chat: Any) -> None:
    chunks = list(
        chat.completions.create(
            model="tiny", prompt="say abc", max_tokens=50, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [chunk.choices[0].text for chunk in chunks if chunk.choices] == ["a", "b", "c", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_choices(chat: Any, stream: bool) -> None:
    made = chat.completions.create(model="tiny", prompt=["say a", "say b"], n=2, max_tokens=50, stream=stream)
    texts = dict.fromkeys(range(4), "")
    for answer in made if stream else [made]:
        for choice in answer.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a", 1: "a", 2: "b", 3: "b"}


def test_logprobs(chat: Any) -> None:
    made = chat.completions.create(model="tiny", prompt="say ab", logprobs=2, max_tokens=50)
    logprobs = made.choices[0].logprobs
    assert logprobs.tokens[:2] == ["a", "b"]
    assert logprobs.text_offset[:2] == [0, 1]
    assert len(logprobs.top_logprobs[0]) == 2


async def test_token_ids_are_a_prompt(client: httpx.AsyncClient, service: ScriptedService) -> None:
    await client.post("/v1/completions", json={"model": "tiny", "prompt": [5, 6, 7]})
    await client.post("/v1/completions", json={"model": "tiny", "prompt": [[5, 6], [7]]})
    assert [request.prompt for request in service.requests] == [(5, 6, 7), (5, 6), (7,)]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [1_000_000]}, None),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [1] * 5000}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
async def test_refused(client: httpx.AsyncClient, change: dict[str, Any], param: str | None) -> None:
    answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_error_within_a_stream(chat: Any) -> None:
    stream = chat.completions.create(model="tiny", prompt="say a\nraise WorkerLost", stream=True)
    with pytest.raises(openai.APIError, match="the scripted WorkerLost"):
        list(stream)
