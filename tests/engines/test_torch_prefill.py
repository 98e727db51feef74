"""TorchPrefill against transformers' stock forward pass, in float32 where equality is sharp."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from diptych.engines.torch import TorchConfig, TorchPrefill, chunk_bounds
from diptych.engines.torch_attention import BLOCK_TOKENS
from diptych.engines.torch_generate import StockModel
from diptych.errors import ConfigError, ContextExceeded, InvalidRequest
from diptych.models.resolve import ModelBundle
from diptych.models.tiny import ARCHITECTURES, Architecture


class Collector:
    """A sink that copies what it gets, and insists that pieces join without a gap."""

    def __init__(self) -> None:
        self.tokens = 0
        self.pieces: list[tuple[np.ndarray, np.ndarray]] = []

    def write(self, token_start: int, keys: Sequence[object], values: Sequence[object]) -> None:
        assert token_start == self.tokens
        k, v = np.array(keys), np.array(values)
        self.tokens += k.shape[2]
        self.pieces.append((k.copy(), v.copy()))

    @property
    def keys(self) -> np.ndarray:
        return np.concatenate([k for k, _ in self.pieces], axis=2)

    @property
    def values(self) -> np.ndarray:
        return np.concatenate([v for _, v in self.pieces], axis=2)


def prompt_of(bundle: ModelBundle, tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, bundle.geometry.vocab, tokens).tolist()


def run(engine: TorchPrefill, prompt: Sequence[int]) -> tuple[Collector, int]:
    sink = Collector()
    steps = engine.prefill(prompt, sink)
    while True:
        try:
            assert next(steps) == sink.tokens
        except StopIteration as end:
            return sink, end.value


def as_float(bits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(bits).view(torch.bfloat16).float().numpy()


@pytest.fixture(params=ARCHITECTURES)
def bundle(request: pytest.FixtureRequest, tiny_bundles: dict[Architecture, ModelBundle]) -> ModelBundle:
    return tiny_bundles[request.param]


def exact(bundle: ModelBundle, chunk: int = 64, cache_mib: int = 0) -> TorchPrefill:
    return TorchPrefill(bundle, TorchConfig(dtype="f32", threads=1, chunk_tokens=chunk, prefix_cache_mib=cache_mib))


def stock_cache(engine: TorchPrefill, prompt: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        cache = StockModel(engine).model(torch.tensor([list(prompt)]), use_cache=True).past_key_values
    layers = cache.layers
    return (
        np.stack([layer.keys[0].numpy() for layer in layers]),
        np.stack([layer.values[0].numpy() for layer in layers]),
    )


@pytest.mark.parametrize("tokens", [1, 63, BLOCK_TOKENS, BLOCK_TOKENS + 63, 2 * BLOCK_TOKENS + 65])
def test_kv_and_logits_are_those_of_the_stock_model(bundle: ModelBundle, tokens: int) -> None:
    engine, prompt = exact(bundle, chunk=256), prompt_of(bundle, tokens)
    sink, cached = run(engine, prompt)
    keys, values = stock_cache(engine, prompt)
    assert cached == 0
    np.testing.assert_allclose(sink.keys, keys, atol=2e-4)
    np.testing.assert_allclose(sink.values, values, atol=2e-4)
    np.testing.assert_allclose(engine.next_logits(prompt), StockModel(engine).logits(prompt)[-1], atol=2e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 500])
def test_chunks_do_not_show(bundle: ModelBundle, chunk: int) -> None:
    prompt = prompt_of(bundle, 150)
    whole, _ = run(exact(bundle, chunk=150), prompt)
    pieces, _ = run(exact(bundle, chunk=chunk), prompt)
    np.testing.assert_allclose(pieces.keys, whole.keys, atol=2e-5)
    np.testing.assert_allclose(pieces.values, whole.values, atol=2e-5)


def test_bf16_is_near_float32(bundle: ModelBundle) -> None:
    prompt = prompt_of(bundle, 300)
    exactly, _ = run(exact(bundle), prompt)
    rounded, _ = run(TorchPrefill(bundle, TorchConfig(threads=1, chunk_tokens=64)), prompt)
    for bits, true in ((rounded.keys, exactly.keys), (rounded.values, exactly.values)):
        assert bits.dtype == np.uint16
        error = np.linalg.norm(as_float(bits) - true, axis=-1) / np.linalg.norm(true, axis=-1)
        assert np.median(error) < 0.02
        assert error.max() < 0.2


def test_a_second_turn_computes_only_its_suffix(bundle: ModelBundle) -> None:
    engine, prompt = exact(bundle, cache_mib=64), prompt_of(bundle, 300)
    first, _ = run(engine, prompt[:200])
    again, cached = run(engine, prompt)
    fresh, none = run(exact(bundle), prompt)
    assert (cached, none, engine.cached_tokens(prompt)) == (192, 0, 256)
    assert again.pieces[0][0].shape[2] == 192
    np.testing.assert_array_equal(again.keys[:, :, :192], first.keys[:, :, :192])
    np.testing.assert_allclose(again.keys, fresh.keys, atol=2e-5)
    np.testing.assert_allclose(again.values, fresh.values, atol=2e-5)


def test_a_prompt_that_is_cached_whole_still_reaches_the_sink(bundle: ModelBundle) -> None:
    engine, prompt = exact(bundle, cache_mib=64), prompt_of(bundle, 128)
    first, _ = run(engine, prompt)
    again, cached = run(engine, prompt)
    assert cached == again.tokens == 128
    np.testing.assert_array_equal(again.keys, first.keys)


def test_interleaved_prompts_do_not_mix(bundle: ModelBundle) -> None:
    engine = exact(bundle, chunk=16, cache_mib=8)
    prompts = [prompt_of(bundle, n, seed=n) for n in (90, 91, 17, 200)]
    prompts.append(prompts[0][:70] + prompts[1][70:])
    sinks = [Collector() for _ in prompts]
    running = [engine.prefill(p, s) for p, s in zip(prompts, sinks, strict=True)]
    while running:
        for steps in list(running):
            if next(steps, None) is None:
                running.remove(steps)
    for prompt, sink in zip(prompts, sinks, strict=True):
        alone, _ = run(exact(bundle, chunk=16), prompt)
        np.testing.assert_array_equal(sink.keys, alone.keys)
        np.testing.assert_array_equal(sink.values, alone.values)


def test_cancelling_frees_the_buffers(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact(bundle, chunk=16, cache_mib=8)
    held = []
    make = engine.decoder.new_buffers

    def watched(capacity: int) -> object:
        kv = make(capacity)
        held.append(weakref.ref(kv.keys))
        return kv

    monkeypatch.setattr(engine.decoder, "new_buffers", watched)
    steps = engine.prefill(prompt_of(bundle, 200), Collector())
    next(steps)
    assert held[0]() is not None
    steps.close()
    gc.collect()
    assert held[0]() is None
    assert engine.cache.used_bytes == 0


def test_a_sink_that_fails_ends_the_prefill(bundle: ModelBundle) -> None:
    class Broken:
        def write(self, *_: object) -> None:
            raise ValueError("gone")

    engine = exact(bundle, cache_mib=8)
    with pytest.raises(ValueError, match="gone"):
        list(engine.prefill(prompt_of(bundle, 100), Broken()))
    assert engine.cache.used_bytes == 0


@pytest.mark.parametrize(
    ("prompt", "error"),
    [([], InvalidRequest), ([-1], InvalidRequest), ([10**6], InvalidRequest), ([5] * 4097, ContextExceeded)],
)
def test_prompts_that_cannot_be_read_are_refused(
    bundle: ModelBundle, prompt: list[int], error: type[Exception]
) -> None:
    engine = exact(bundle)
    with pytest.raises(error):
        next(engine.prefill(prompt, Collector()))


def test_an_unknown_device_is_refused_by_name(bundle: ModelBundle) -> None:
    with pytest.raises(ConfigError, match="warp9"):
        TorchPrefill(bundle, TorchConfig(device="warp9"))


def test_the_description_names_model_and_form(bundle: ModelBundle) -> None:
    about = exact(bundle).describe()
    assert about.fingerprint == about.form.fingerprint == bundle.fingerprint
    assert about.form.rope.pairing == "half"
    assert about.form.keys.axes == ("head", "token", "dim")
    assert about.form.keys.dtype == "f32"


def test_generate_takes_every_token_time(bundle: ModelBundle) -> None:
    engine, prompt = exact(bundle), prompt_of(bundle, 40)
    result = StockModel(engine).generate_greedy(prompt, 12, ignore_eos=True)
    expected = list(prompt)
    for _ in range(12):
        expected.append(int(engine.next_logits(expected).argmax()))
    assert list(result.tokens) == expected[40:]
    assert len(result.at_ms) == 12
    assert sorted(result.at_ms) == list(result.at_ms)
    assert 0 < result.ttft_ms <= result.e2e_ms


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 256), (0, 773), (192, 200), (64, 64), (5, 2048)])
def test_chunks_cover_the_range_without_a_stub(start: int, stop: int) -> None:
    bounds = chunk_bounds(start, stop, 256)
    assert [a for a, _ in bounds[1:]] == [b for _, b in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (start, stop) if stop > start else not bounds
    sizes = [b - a for a, b in bounds] or [0]
    assert set(sizes[:-1]) <= {256}
    assert sizes[-1] <= 384
    assert len(sizes) == 1 or sizes[-1] >= 128
