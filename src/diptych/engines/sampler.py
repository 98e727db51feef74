"""The next token from logits, for engines that have no sampler of their own. Pure.

    logits -> penalties -> temperature -> top_k -> top_p -> min_p -> draw

Temperature comes before the cuts, as with llama.cpp's chain here, OpenAI and vLLM. Penalties count what was generated,
not the prompt (as OpenAI's and vLLM's; llama.cpp counts both). Log-probabilities are those before any of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.errors import InvalidRequest
from diptych.types import Sampling, TokenLogprob

Floats = NDArray[np.float32]


def check(sampling: Sampling) -> None:
    """Raises InvalidRequest for what this sampler cannot do."""
    if sampling.grammar is not None or sampling.json_schema is not None:
        raise InvalidRequest("PyTorch decode cannot constrain an answer to a grammar or schema; llama.cpp decode can")


class Sampler:
    """One sequence's sampler. With a seed its choices are the same every time."""

    def __init__(self, sampling: Sampling, end_tokens: Sequence[int]) -> None:
        check(sampling)
        self._sampling = sampling
        self._never = list(end_tokens) if sampling.ignore_eos else []
        self._random = np.random.default_rng(sampling.seed)
        self._counts: Counter[int] = Counter()

    def choose(self, logits: Floats) -> int:
        """The token after this one's logits [vocab], which are left as they are."""
        weighed = logits.astype(np.float64)
        weighed[self._never] = -np.inf
        self._penalise(weighed)
        token = int(weighed.argmax()) if self._sampling.temperature == 0 else self._draw(weighed)
        self._counts[token] += 1
        return token

    def logprobs(self, logits: Floats, token: int) -> tuple[TokenLogprob, ...]:
        """Of the chosen token and the likeliest ones, in natural logarithms; empty where none were asked for."""
        alternatives = self._sampling.logprobs
        if alternatives is None:
            return ()
        wide = logits.astype(np.float64)
        wide -= wide.max()
        wide -= np.log(np.exp(wide).sum())
        likeliest = np.argsort(-wide, kind="stable")[:alternatives]
        return (TokenLogprob(token, float(wide[token]), tuple((int(i), float(wide[i])) for i in likeliest)),)

    def _penalise(self, weighed: NDArray[np.float64]) -> None:
        sampling = self._sampling
        if not self._counts or not (sampling.presence_penalty or sampling.frequency_penalty):
            return
        seen, times = (np.fromiter(column, np.int64) for column in (self._counts.keys(), self._counts.values()))
        weighed[seen] -= sampling.presence_penalty + sampling.frequency_penalty * times

    def _draw(self, weighed: NDArray[np.float64]) -> int:
        """Candidates in falling order, cut from the end, then one by its share of what is left."""
        sampling = self._sampling
        order = np.argsort(-weighed, kind="stable")[: sampling.top_k or None]
        scaled = weighed[order] / sampling.temperature
        shares = np.exp(scaled - scaled[0])
        shares /= shares.sum()
        kept = len(shares)
        if sampling.top_p < 1:
            kept = int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1
        if sampling.min_p > 0:
            kept = min(kept, int((shares >= sampling.min_p * shares[0]).sum()))
        shares = shares[:kept]
        at = np.searchsorted(np.cumsum(shares), self._random.random() * shares.sum(), side="right")
        return int(order[min(int(at), len(shares) - 1)])
