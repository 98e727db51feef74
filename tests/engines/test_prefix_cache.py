"""The prefix cache alone: what it finds, what it forgets, and that it never finds the wrong thing."""

from __future__ import annotations

import torch

from diptych.engines.prefix_cache import BLOCK_TOKENS, PrefixCache
from diptych.engines.torch_model import KVBuffers

BLOCK_BYTES = 2 * 2 * BLOCK_TOKENS * 4 * (4 + 8)


def kv_of(prompt: list[int]) -> KVBuffers:
    """KV whose every number tells which position and which prompt it belongs to."""
    names = torch.cumsum(torch.tensor(prompt, dtype=torch.float64), 0).float()
    keys = names[None, None, :, None].expand(2, 2, -1, 4).clone()
    return KVBuffers(keys, -names[None, None, :, None].expand(2, 2, -1, 8).clone())


def blank(tokens: int) -> KVBuffers:
    return KVBuffers(torch.full((2, 2, tokens, 4), -1.0), torch.full((2, 2, tokens, 8), -1.0))


def prompt_of(seed: int, blocks: int, extra: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1000, (blocks * BLOCK_TOKENS + extra,), generator=generator).tolist()


def check(cache: PrefixCache, prompt: list[int], blocks: int) -> None:
    kv, true, tokens = blank(len(prompt)), kv_of(prompt), blocks * BLOCK_TOKENS
    assert cache.match(prompt) == cache.restore(prompt, kv) == tokens
    torch.testing.assert_close(kv.keys[:, :, :tokens], true.keys[:, :, :tokens], rtol=0, atol=0)
    torch.testing.assert_close(kv.values[:, :, :tokens], true.values[:, :, :tokens], rtol=0, atol=0)
    assert (kv.keys[:, :, tokens:] == -1).all()


def test_whole_blocks_are_found_and_a_part_is_not() -> None:
    cache, prompt = PrefixCache(100 * BLOCK_BYTES), prompt_of(1, 3, extra=10)
    cache.store(prompt, kv_of(prompt))
    check(cache, prompt, 3)
    check(cache, prompt[: 2 * BLOCK_TOKENS + 63], 2)
    check(cache, prompt[: BLOCK_TOKENS - 1], 0)
    assert cache.used_bytes == 3 * BLOCK_BYTES


def test_equal_blocks_at_other_places_are_other_blocks() -> None:
    cache, prompt = PrefixCache(100 * BLOCK_BYTES), prompt_of(1, 2)
    cache.store(prompt, kv_of(prompt))
    check(cache, prompt[BLOCK_TOKENS:], 0)
    check(cache, prompt[:BLOCK_TOKENS] * 2, 1)
    changed = [prompt[0] + 1, *prompt[1:]]
    check(cache, changed, 0)


def test_shared_beginnings_are_kept_once() -> None:
    cache = PrefixCache(100 * BLOCK_BYTES)
    shared = prompt_of(1, 2)
    prompts = [shared + prompt_of(seed, 2) for seed in (2, 3, 4)]
    for prompt in prompts:
        cache.store(prompt, kv_of(prompt))
    assert cache.used_bytes == (2 + 3 * 2) * BLOCK_BYTES
    for prompt in prompts:
        check(cache, prompt, 4)


def test_the_bound_holds_and_the_ends_of_old_chains_go_first() -> None:
    cache = PrefixCache(4 * BLOCK_BYTES)
    old, new = prompt_of(1, 3), prompt_of(2, 3)
    cache.store(old, kv_of(old))
    cache.store(new, kv_of(new))
    assert cache.used_bytes == 4 * BLOCK_BYTES
    check(cache, new, 3)
    check(cache, old, 1)


def test_what_was_used_lately_stays() -> None:
    cache = PrefixCache(4 * BLOCK_BYTES)
    a, b, c = (prompt_of(seed, 2) for seed in (1, 2, 3))
    cache.store(a, kv_of(a))
    cache.store(b, kv_of(b))
    check(cache, a, 2)
    cache.store(c, kv_of(c))
    check(cache, a, 2)
    check(cache, b, 0)


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    cache, prompt = PrefixCache(2 * BLOCK_BYTES), prompt_of(1, 5)
    cache.store(prompt, kv_of(prompt))
    assert cache.used_bytes == 2 * BLOCK_BYTES
    check(cache, prompt, 2)


def test_what_is_kept_does_not_change_with_the_caller_s_buffers() -> None:
    cache, prompt = PrefixCache(9 * BLOCK_BYTES), prompt_of(1, 1)
    kv = kv_of(prompt)
    cache.store(prompt, kv)
    kv.keys.zero_()
    check(cache, prompt, 1)


def test_switched_off_and_cleared() -> None:
    off, on, prompt = PrefixCache(0), PrefixCache(9 * BLOCK_BYTES), prompt_of(1, 2)
    for cache in (off, on):
        cache.store(prompt, kv_of(prompt))
    on.clear()
    for cache in (off, on):
        check(cache, prompt, 0)
        assert cache.used_bytes == 0


def test_the_end_of_a_prompt_may_come_by_itself() -> None:
    """From elsewhere, behind blocks that are held; where they are gone, nothing could ever find it."""
    cache, prompt = PrefixCache(100 * BLOCK_BYTES), prompt_of(5, 4, extra=7)
    start, whole = 2 * BLOCK_TOKENS, kv_of(prompt)
    rest = KVBuffers(whole.keys[:, :, start : 4 * BLOCK_TOKENS], whole.values[:, :, start : 4 * BLOCK_TOKENS])
    cache.store(prompt[: 4 * BLOCK_TOKENS], rest, start)
    assert (cache.match(prompt), cache.used_bytes) == (0, 0)
    cache.store(prompt[:start], whole)
    cache.store(prompt[: 4 * BLOCK_TOKENS], rest, start)
    check(cache, prompt, 4)
