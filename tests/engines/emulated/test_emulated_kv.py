"""The KV of emulated engines: exact in both forms, causal, and every byte of it decides the tokens."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.engines.emulated import kv
from diptych.engines.emulated.held import BLOCK_TOKENS, Held
from diptych.engines.emulated.words import Words, seed_of
from diptych.handoff import convert
from diptych.handoff.layout import Chunk
from diptych.handoff.plan import plan
from diptych.handoff.region import Region

MODEL = "some model"


def prompt_of(tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 49152, tokens).tolist()


def rows(prompt: list[int]) -> list[np.ndarray]:
    return kv.as_rows(kv.values(kv.states(prompt, MODEL)))


@pytest.mark.parametrize("tokens", [1, 2, 63, 200])
def test_what_is_converted_is_what_decode_makes_itself(tokens: int) -> None:
    """bf16 by heads, in halves -> f16 rows, in neighbours: by the converter, and by the engine's own arithmetic."""
    prompt = prompt_of(tokens)
    source, target = kv.prefill_form(MODEL), kv.decode_form(MODEL)
    keys, values = kv.as_written(kv.values(kv.states(prompt, MODEL)))
    landed = np.zeros(target.region_bytes(tokens), np.uint8)
    region = Region(target, landed, tokens)
    convert.execute(plan(source, target), 0, Chunk.of(source, keys, values, tokens), region)
    for index, own in enumerate(rows(prompt)):
        assert np.array_equal(region.piece(index, 0, tokens)[0], own), f"image {index}"


def test_the_numbers_look_like_kv() -> None:
    found = kv.values(kv.states(prompt_of(500), MODEL))
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 256
    assert abs(float(found.mean())) < 0.1


def test_causal_and_the_same_in_chunks() -> None:
    prompt = prompt_of(300)
    whole = kv.states(prompt, MODEL)
    assert np.array_equal(whole[:100], kv.states(prompt[:100], MODEL))
    changed = [*prompt[:50], prompt[50] + 1, *prompt[51:]]
    other = kv.states(changed, MODEL)
    assert np.array_equal(other[:50], whole[:50])
    assert (other[50:] != whole[50:]).all()
    swapped = kv.states([*prompt[:10], prompt[11], prompt[10], *prompt[12:]], MODEL)
    assert (swapped[11:] != whole[11:]).all(), "order counts"
    assert (kv.states(prompt, "another model") != whole).all()


def test_every_byte_decides_every_token() -> None:
    """Flips each byte of the KV of a prompt, one at a time; no two texts are alike."""
    words = Words(range(1000, 6000), 49152)
    blocks = rows(prompt_of(9))
    right = words.say(seed_of(blocks, 5), 24)
    seen = {tuple(right)}
    flips = 0
    for block in blocks:
        for at in range(block.size):
            block.flat[at] ^= 1
            wrong = words.say(seed_of(blocks, 5), 24)
            block.flat[at] ^= 1
            assert sum(a == b for a, b in zip(right, wrong, strict=True)) <= 2, "chance alone"
            seen.add(tuple(wrong))
            flips += 1
    assert flips == 9 * kv.decode_form(MODEL).bytes_per_token
    assert len(seen) == flips + 1
    assert words.say(seed_of(blocks, 5), 24) == right
    assert words.say(seed_of(blocks, 6), 24) != right, "the last prompt token counts too"


def test_mixed_up_images_are_seen() -> None:
    blocks = rows(prompt_of(40))
    right = seed_of(blocks, 1)
    for i in range(len(blocks) - 1):
        mixed = [*blocks[:i], blocks[i + 1], blocks[i], *blocks[i + 2 :]]
        assert seed_of(mixed, 1) != right
    assert seed_of([np.roll(block, 1, axis=0) for block in blocks], 1) != right


def test_a_distribution_is_one_and_agrees_with_what_is_said() -> None:
    words = Words(range(100, 400), 500)
    for seed in (0, 1, (1 << 64) - 1):
        found = words.distribution(seed)
        assert np.isclose(np.exp(found.astype(np.float64)).sum(), 1.0, atol=1e-5)
        assert int(found.argmax()) == words.say(seed, 1)[0]
        assert words.say(seed, 7)[3] == words.logprob(seed, 3, 2).token
        assert words.logprob(seed, 3, 2).top[0][0] == words.say(seed, 4)[3]


def test_held_prefixes() -> None:
    held = Held(4 * BLOCK_TOKENS)
    one, other = (kv.states(prompt_of(200, seed), MODEL) for seed in (1, 2))
    held.add(one)
    assert held.match(one) == 3 * BLOCK_TOKENS
    assert held.match(one[: 2 * BLOCK_TOKENS - 1]) == BLOCK_TOKENS
    assert held.match(other) == 0
    held.add(other)
    assert held.match(other) == 3 * BLOCK_TOKENS
    assert held.match(one) == BLOCK_TOKENS, "the end of the older chain went first"
