"""Tiny random models whose greedy answers are plain text."""

from __future__ import annotations

from pathlib import Path

import gguf

from diptych.models.tiny import Architecture, write_tiny_gguf


def plain_tiny(path: Path, architecture: Architecture = "llama", seed: int = 0) -> Path:
    """A tiny model that never chooses half of a character: the head's rows of all bytes beyond ASCII are zero.

    llama-server gives no log-probabilities for such tokens, and a test of which token was a near-tie needs them.
    """
    write_tiny_gguf(path, architecture, seed=seed)
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[index]).decode() for index in field.data]
    head = next(tensor for tensor in reader.tensors if tensor.name == "output.weight")
    head.data[[not _plain(token) for token in tokens]] = 0
    head.data.flush()
    return path


def _plain(token: str) -> bool:
    """Printable ASCII in the byte alphabet, and the space."""
    return all("!" <= char <= "~" or char == "Ġ" for char in token) and not token.startswith("<")
