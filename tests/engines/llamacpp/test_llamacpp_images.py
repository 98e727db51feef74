"""Slot images: fixed size, private, and checked to the byte before anybody restores them."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.engines.llamacpp.images import ImagePool, SlotImage
from diptych.engines.llamacpp.slotfile import Grammar, SlotForm, parse
from diptych.errors import ConfigError, CorruptKV

FORM = SlotForm(
    version=4, grammar=Grammar(True, 2), extra=(0, 0), streams=4, types=(1, 1, 1, 1), row_bytes=(8, 8, 8, 8)
)
TOKENS = (3, 1, 4, 1, 5)


@pytest.fixture
def image(slot_dir: Path) -> SlotImage:
    return SlotImage(slot_dir, FORM, 64)


def test_the_file_is_private_and_keeps_its_size(image: SlotImage) -> None:
    size = image.path.stat().st_size
    assert stat.S_IMODE(image.path.stat().st_mode) == 0o600
    for tokens in (TOKENS, range(64), TOKENS):
        image.prepare(tokens)
        assert image.path.stat().st_size == size == FORM.longest(64)
    image.close()


def test_what_stands_in_the_file_is_a_slot_file(image: SlotImage) -> None:
    image.prepare(range(64))
    blocks = image.prepare(TOKENS)
    for index, block in enumerate(blocks):
        block[:] = index
    image.verify(TOKENS)
    data = image.path.read_bytes()[: image.file_bytes]
    file = parse(data)
    assert file.tokens == TOKENS
    assert [data[offset : offset + 40] for offset, _ in file.rows] == [bytes([index]) * 40 for index in range(4)]
    image.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_structural_byte_is_found(slot_dir: Path, data: st.DataObject) -> None:
    image = SlotImage(slot_dir, FORM, 16)
    try:
        image.prepare(TOKENS)
        run = data.draw(st.sampled_from(FORM.layout(TOKENS).structure))
        at = run.offset + data.draw(st.integers(0, len(run.data) - 1))
        with image.path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([run.data[at - run.offset] ^ data.draw(st.integers(1, 255))]))
        with pytest.raises(CorruptKV, match=f"byte {run.offset}"):
            image.verify(TOKENS)
    finally:
        image.close()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 100])
def test_a_short_file_is_found(image: SlotImage, cut: int) -> None:
    image.prepare(TOKENS)
    size = image.path.stat().st_size
    with image.path.open("r+b") as file:
        file.truncate(size - cut)
    with pytest.raises(CorruptKV, match="bytes"):
        image.verify(TOKENS)
    image.close()


def test_no_memory_is_one_error_and_leaves_nothing(slot_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, calls = os.posix_fallocate, []

    def full(descriptor: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="no room for a slot image"):
        ImagePool(slot_dir, FORM, 16, 2)
    assert list(slot_dir.iterdir()) == []


def test_other_tokens_are_found(image: SlotImage) -> None:
    image.prepare(TOKENS)
    for wrong in ((3, 1, 4, 1, 6), TOKENS[:-1], (*TOKENS, 9)):
        with pytest.raises(CorruptKV):
            image.verify(wrong)
    image.close()


async def test_an_image_belongs_to_one_at_a_time(slot_dir: Path) -> None:
    pool = ImagePool(slot_dir, FORM, 16, 2)
    held: set[str] = set()

    async def use() -> None:
        async with pool.take() as image:
            assert image.name not in held
            held.add(image.name)
            await asyncio.sleep(0)
            held.remove(image.name)

    await asyncio.gather(*(use() for _ in range(50)))
    pool.close()
