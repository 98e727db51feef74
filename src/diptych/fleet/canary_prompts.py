"""The prompts of a qualification: raw text and chat, 8 to 1,500 tokens, all different. Deterministic."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

LENGTHS = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 200, 256, 320, 384)
LONG = (257, 513, 640, 1024, 1500)
START_UP = (24, 96, 288)

_SUBJECTS = (
    "The harbour pilot", "A retired teacher", "Our night-shift nurse", "The youngest violinist", "A railway engineer",
    "The lighthouse keeper", "My neighbour's daughter", "The court stenographer", "An amateur astronomer",
    "The bakery's owner", "A patient gardener", "The visiting chemist", "One of the cartographers", "The goalkeeper",
)  # fmt: skip
_VERBS = (
    "measured", "described", "repaired", "questioned", "photographed", "painted", "catalogued", "lost", "translated",
    "defended", "weighed", "borrowed", "sketched", "remembered", "rebuilt", "counted", "tasted", "announced",
)  # fmt: skip
_OBJECTS = (
    "seventeen brass gauges", "the tide tables of 1893", "a loaf of rye bread", "the southern stairwell",
    "an unsigned contract", "the third movement", "a map of the river delta", "two litres of seawater",
    "the broken telescope", "her grandmother's recipe", "a list of prime numbers", "the red bicycle",
    "every window on the east side", "a jar of iron filings", "the missing passenger", "def area(r): return 3.14 * r",
)  # fmt: skip
_ENDINGS = (
    "before the storm arrived.", "because nobody else would.", "and wrote the result on the wall.",
    "while the kettle boiled;", "at 6:45 in the morning.", "although the law forbade it.", "for the second time.",
    "in less than an hour!", "without asking why.", "so that the children could see it.", "as the choir went home.",
)  # fmt: skip


class Tokenizes(Protocol):
    """The two powers of a chat format that canaries need."""

    def encode(self, text: str) -> tuple[int, ...]: ...

    def prompt_tokens(self, messages: list[dict[str, object]]) -> tuple[int, ...]: ...


def prose(seed: int, sentences: int) -> str:
    """So many different English sentences, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311  # reproducible text, not a secret
    parts = (
        (draw.choice(_SUBJECTS), draw.choice(_VERBS), draw.choice(_OBJECTS), draw.choice(_ENDINGS))
        for _ in range(sentences)
    )
    return " ".join(" ".join(part) for part in parts)


def raw_canary(chat: Tokenizes, tokens: int, seed: int) -> tuple[int, ...]:
    """Exactly ``tokens`` tokens of prose."""
    text = prose(seed, tokens // 8 + 4)
    ids = chat.encode(text)
    while len(ids) < tokens:
        seed += 1000
        ids += chat.encode(" " + prose(seed, tokens // 8 + 4))
    return ids[:tokens]


def chat_canary(chat: Tokenizes, tokens: int, seed: int) -> tuple[int, ...]:
    """A chat turn of about ``tokens`` tokens through the model's own template."""
    sentences = max(1, tokens // 14)
    text = f"Summarise in one sentence: {prose(seed, sentences)}"
    return chat.prompt_tokens([{"role": "user", "content": text}])


def full_set(chat: Tokenizes, context_tokens: int) -> list[tuple[int, ...]]:
    """At least 32 canaries that fit into the context."""
    raw = [raw_canary(chat, tokens, seed) for seed, tokens in enumerate((*LENGTHS, *LONG)) if tokens < context_tokens]
    talk = [chat_canary(chat, tokens, 100 + seed) for seed, tokens in enumerate(LENGTHS[3:])]
    fitting = [prompt for prompt in (*raw, *talk) if len(prompt) < context_tokens]
    seed = 500
    while len(fitting) < 32:
        fitting.append(raw_canary(chat, min(16 + seed % 32, context_tokens - 1), seed))
        seed += 1
    return fitting


def start_up_set(chat: Tokenizes, context_tokens: int) -> Sequence[tuple[int, ...]]:
    """Three short canaries, which also measure the workers."""
    return [raw_canary(chat, min(tokens, context_tokens - 1), 900 + tokens) for tokens in START_UP]
