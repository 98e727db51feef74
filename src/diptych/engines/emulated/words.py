"""From KV to tokens. All tokens follow from one seed, and the seed is a digest of every byte of the KV:

    [K layer 0 | ... | V layer n] + last prompt token --XXH3--> seed --mix(seed + i)--> token i

so what was corrupted or mixed up on the way is seen from the first word on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from diptych.engines.emulated.kv import mix
from diptych.errors import ConfigError
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.types import TokenLogprob

_WORD = re.compile(rb" [a-z]{2,12}")
_FEWEST = 64
_SHARES = (0.6, 0.2, 0.1)
"""Probabilities of the first three candidates; all other tokens share the rest evenly."""


def seed_of(blocks: Sequence[NDArray[np.uint8]], last_token: int) -> int:
    """What the next tokens follow from: ``blocks`` are the KV of all but the last prompt token."""
    digest = xxhash.xxh3_64()
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
    digest.update(last_token.to_bytes(8, "little"))
    return int(digest.intdigest())


class Words:
    """The tokens that the engine may say: whole words in lower case, or whatever is printable in a small vocabulary."""

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        self._tokens = np.asarray(tokens, np.int64)
        self._vocabulary = vocabulary

    @classmethod
    def of(cls, bundle: ModelBundle) -> Words:
        """Raises ConfigError for a vocabulary in which nothing is printable."""
        chat = ChatFormat.load(bundle)
        texts = [chat.token_text(token) for token in range(bundle.geometry.vocab)]
        found = [token for token, text in enumerate(texts) if _WORD.fullmatch(text)]
        if len(found) < _FEWEST:
            found = [token for token, text in enumerate(texts) if len(text) == 1 and 32 <= text[0] < 127]
        if len(found) < len(_SHARES):
            raise ConfigError(f"{bundle.id}: its vocabulary has no printable tokens for an emulated engine to say")
        return cls(found, bundle.geometry.vocab)

    def say(self, seed: int, count: int) -> list[int]:
        """The first ``count`` tokens after KV of this seed."""
        chosen = self._candidates(np.arange(count, dtype=np.uint64) + np.uint64(seed))
        said: list[int] = self._tokens[chosen].tolist()
        return said

    def logprob(self, seed: int, step: int, alternatives: int) -> TokenLogprob:
        """Of the token at ``step``, with its runners-up."""
        first = int(self._candidates(np.array([step], np.uint64) + np.uint64(seed))[0])
        top = [(self._near(first, i), float(np.log(share))) for i, share in enumerate(_SHARES)]
        return TokenLogprob(*top[0], tuple(top[: max(0, alternatives)]))

    def distribution(self, seed: int) -> NDArray[np.float32]:
        """Natural-log probabilities of the first token over the whole vocabulary."""
        rest = (1.0 - sum(_SHARES)) / max(1, self._vocabulary - len(_SHARES))
        found = np.full(self._vocabulary, np.log(rest), np.float32)
        for token, logprob in self.logprob(seed, 0, len(_SHARES)).top:
            found[token] = logprob
        return found

    def _candidates(self, at: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return mix(at) % np.uint64(len(self._tokens))

    def _near(self, first: int, rank: int) -> int:
        return int(self._tokens[(first + rank) % len(self._tokens)])
