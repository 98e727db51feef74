"""Prompts of a wanted length that differ from each other from their first word on."""

from __future__ import annotations

WORDS = ["river", "stone", "lamp", "green", "quick", "seven", "paper", "cloud", "train", "apple", "north", "glass"]


def question(number: int, words: int) -> str:
    """A text of so many words; each number its own from the first word on."""
    return " ".join(f"{WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)]}{number}" for i in range(words))
