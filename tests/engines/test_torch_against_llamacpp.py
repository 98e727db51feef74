"""The same tiny models in llama.cpp: its tokens, and its next-token distribution over the whole vocabulary.

The two engines share nothing but the GGUF file: agreement proves geometry, RoPE pairing, biases and norms.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import xllamacpp

from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.models.tiny import ARCHITECTURES, Architecture

TEXTS = [
    "Hello world, 1234 times",
    "  two  spaces\n\n\tand   tabs ",
    "naïve café 日本語 🤖🎉👨‍👩‍👧",
    "<|im_start|>user\ndon't I'LL we're<|im_end|>\n",
    "def f(x):\n    return x ** 2  # ½ №3 \u200b",
    "a  1  b\r\n\r\n c_d-e",
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def served(
    request: pytest.FixtureRequest, tiny_bundles: dict[Architecture, ModelBundle]
) -> Iterator[tuple[ModelBundle, httpx.Client]]:
    bundle = tiny_bundles[request.param]
    params = xllamacpp.CommonParams()
    params.model.path = bundle.gguf
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 1024, 1, 1, False
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:
        yield bundle, client
    del server


def llama_logprobs(client: httpx.Client, prompt: list[int], vocab: int) -> np.ndarray:
    """From the model's own logits: the bias decides what is sampled (a whole character), and no more."""
    body = {"prompt": prompt, "n_predict": 1, "n_probs": vocab, "cache_prompt": False, "temperature": 0}
    answer = client.post("/completion", json=body | {"logit_bias": [["a", 1000]]}).raise_for_status().json()
    found = np.full(vocab, np.nan)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_next_token_has_the_same_distribution(served: tuple[ModelBundle, httpx.Client], dtype: str) -> None:
    bundle, client = served
    vocab = bundle.geometry.vocab
    engine = TorchPrefill(bundle, TorchConfig(dtype=dtype, threads=1, chunk_tokens=100))
    for tokens in (1, 5, 200):
        prompt = np.random.default_rng(tokens).integers(3, vocab, tokens).tolist()
        theirs = llama_logprobs(client, prompt, vocab)
        logits = engine.next_logits(prompt).astype(np.float64)
        ours = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        divergence = float((np.exp(theirs) * (theirs - ours)).sum())
        assert divergence < (1e-4 if dtype == "f32" else 0.01)
        assert np.abs(theirs - ours).max() < (0.05 if dtype == "f32" else 0.5)


def test_the_same_text_has_the_same_tokens(served: tuple[ModelBundle, httpx.Client]) -> None:
    bundle, client = served
    chat = ChatFormat.load(bundle)
    for text in TEXTS:
        body = {"content": text, "add_special": False, "parse_special": True}
        assert client.post("/tokenize", json=body).json()["tokens"] == list(chat.encode(text)), text
