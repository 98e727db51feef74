"""The decode engine on the real llama-server: takeover, isolation, cancellation, sampling."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from llamacpp_support import Landed, answer, running, same_but_for_near_ties

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.engine import LlamaCppDecode
from diptych.engines.llamacpp.probe import saved
from diptych.engines.llamacpp.slotfile import Bytes
from diptych.errors import ContextExceeded, CorruptKV, HandoffError, InvalidRequest, WorkerLost
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.types import Sampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(max_tokens=400, temperature=0, ignore_eos=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm: ModelBundle) -> AsyncGenerator[LlamaCppDecode]:
    async with running(smollm) as started:
        yield started


@pytest.fixture(scope="module")
def chat(smollm: ModelBundle) -> ChatFormat:
    return ChatFormat.load(smollm)


@pytest.fixture(scope="module")
def prompt(chat: ChatFormat) -> tuple[int, ...]:
    return chat.encode("The lighthouse keeper wrote every evening what the sea had brought. " * 8)


async def busy_slots(engine: LlamaCppDecode) -> int:
    slots = msgspec.json.decode(await engine._server.client.call("GET", "/slots"))
    return sum(slot["is_processing"] for slot in slots)


async def until_free(engine: LlamaCppDecode) -> None:
    """In the engine's eyes and in the server's."""
    async with asyncio.timeout(10):
        while engine.batch or await busy_slots(engine):
            await asyncio.sleep(0.02)


class TestTakeover:
    async def test_own_kv_gives_own_tokens(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        alone = await answer(engine, prompt)
        landed = Landed(await engine.export_rows(prompt))
        for _ in range(3):
            assert same_but_for_near_ties(await answer(engine, prompt, landed), alone)

    async def test_every_architecture_takes_its_own_kv(self, any_tiny: ModelBundle) -> None:
        prompt = tuple(range(20, 120))
        async with running(any_tiny) as engine:
            assert engine.describe().form.rope.pairing == any_tiny.geometry.rope_pairing
            alone = await engine.next_logprobs(prompt)
            taken = await engine.next_logprobs(prompt, Landed(await engine.export_rows(prompt)))
            assert np.abs(taken - alone).max() < 0.05
            assert np.exp(alone, dtype=np.float64).sum() == pytest.approx(1, abs=1e-3)

    @pytest.mark.parametrize("slot", [0, 5])
    async def test_a_saved_slot_is_rebuilt_byte_for_byte(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...], slot: int
    ) -> None:
        rows = await engine.export_rows(prompt)
        await until_free(engine)
        body = wire.completion(prompt, GREEDY_ONE, slot, reuse=False, stream=False)
        await engine._server.client.call("POST", "/completion", body)
        data = await saved(engine._server.client, slot, Path(engine._settings.slot_dir))
        layout = engine._images._all[0]._form.layout(prompt)
        image = np.zeros(layout.length, np.uint8)
        layout.write(image)
        for block, row in zip(layout.blocks(image), (*rows.keys, *rows.values), strict=True):
            block[:] = row.view(np.uint8)
        assert image.tobytes() == first_stream(data, slot, len(prompt))

    async def test_kv_of_the_wrong_layer_shows(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        """The comparison of distributions is able to fail."""
        rows = await engine.export_rows(prompt)
        landed, shifted = Landed(rows), Landed(rows)
        shifted.rows = shifted.rows[1:] + shifted.rows[:1]
        alone = await engine.next_logprobs(prompt)
        assert np.abs(alone - await engine.next_logprobs(prompt, landed)).max() < 1
        assert np.abs(alone - await engine.next_logprobs(prompt, shifted)).max() > 2

    async def test_next_logprobs_is_a_distribution(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        found = await engine.next_logprobs(prompt)
        assert found.shape == (engine._model.vocabulary,)
        assert np.isfinite(found).all()
        assert np.exp(found, dtype=np.float64).sum() == pytest.approx(1, abs=1e-3)


GREEDY_ONE = Sampling(max_tokens=1, temperature=0, ignore_eos=True)


def first_stream(data: bytes, slot: int, tokens: int) -> bytes:
    """A file saved from ``slot`` as if that slot were the first: its cells move and carry sequence id 0."""
    head = 4 * (3 + 4 + tokens + 1)
    trailing = 4 * (7 - slot)
    cells = np.frombuffer(data, "<u4", 3 * tokens, head + 4 * slot + 4).reshape(tokens, 3).copy()
    assert (cells[:, 2] == slot).all()
    cells[:, 2] = 0
    body = data[head + 4 * slot + 4 + cells.nbytes : len(data) - trailing]
    return data[:head] + data[head + 4 * slot : head + 4 * slot + 4] + cells.tobytes() + body + bytes(28)


class Faulty(Landed):
    """Hands over, then does harm: to its own promise, to the image, or by failing."""

    def __init__(self, engine: LlamaCppDecode, landed: Landed, fault: str) -> None:
        self.tokens, self.rows = landed.tokens, landed.rows
        self._directory, self._fault = Path(engine._settings.slot_dir), fault
        if fault == "count":
            self.tokens += 1

    def admit(self, blocks: Sequence[Bytes]) -> None:
        super().admit(blocks)
        if self._fault == "digest":
            raise CorruptKV("the digest differs")
        for path in self._directory.glob("image-*"):
            if self._fault == "short":
                os.truncate(path, path.stat().st_size - 4)
            elif self._fault.startswith("flip"):
                with path.open("r+b") as file:
                    file.seek(int(self._fault.removeprefix("flip")))
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 0x40]))


FAULTS = ["digest", "count", "short", *(f"flip{offset}" for offset in (0, 4, 8, 12, 20, 24, 31, 1500))]


class TestRefusal:
    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_damaged_handoff_is_refused_and_recomputed(self, tiny: ModelBundle, fault: str) -> None:
        prompt = tuple(range(30, 130))
        async with running(tiny) as engine:
            alone = await answer(engine, prompt)
            landed = Landed(await engine.export_rows(prompt))
            with pytest.raises(HandoffError):
                await answer(engine, prompt, Faulty(engine, landed, fault))
            await until_free(engine)
            # the server lives, and what the failed attempt touched is not used
            assert (await answer(engine, prompt)).tokens == alone.tokens

    async def test_kv_of_a_part_of_the_prompt_is_taken_over(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...]
    ) -> None:
        """Where a lost worker's stream goes on: its prompt's KV lands, what was emitted since is computed here."""
        alone = await answer(engine, prompt)
        landed = Landed(await engine.export_rows(prompt))
        chunks = [
            chunk
            async for chunk in engine.decode(
                "r", (*prompt, *alone.tokens[:6]), landed, Sampling(max_tokens=10, temperature=0, ignore_eos=True)
            )
        ]
        assert chunks[0].prepared is not None
        assert chunks[0].prepared.kv_tokens == len(prompt) - 1
        tokens = [token for chunk in chunks for token in chunk.tokens]
        parted = next((i for i, token in enumerate(tokens) if token != alone.tokens[6 + i]), None)
        assert parted is None or alone.gap(6 + parted) < 0.5

    async def test_without_the_servers_own_count_nothing_is_yielded(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        landed = Landed(await engine.export_rows(prompt))
        await until_free(engine)
        real, calls = engine._server.client.slot, []

        async def pretend(index: int, action: str, filename: str = "") -> wire.SlotReply:
            calls.append((index, action))
            if action == "restore":
                await real(index, "erase")
                layout = engine._images._all[0]._form.layout(prompt[:-1])
                return wire.SlotReply(n_restored=len(prompt) - 1, n_read=layout.length)
            return await real(index, action, filename)

        monkeypatch.setattr(engine._server.client, "slot", pretend)
        with pytest.raises(CorruptKV, match="took over 0 tokens"):
            await answer(engine, prompt, landed)
        await until_free(engine)
        assert [action for _, action in calls] == ["restore", "erase"]
        assert len({index for index, _ in calls}) == 1

    async def test_a_prompt_of_one_token_has_nothing_to_hand_over(self, engine: LlamaCppDecode) -> None:
        landed = Landed(await engine.export_rows((5,)))
        with pytest.raises(CorruptKV):
            await answer(engine, (5,), landed)

    async def test_cancelled_while_it_is_filled(self, tiny: ModelBundle) -> None:
        """The image and the slot stay taken until the thread that writes to them is done."""
        prompt = tuple(range(30, 130))
        async with running(tiny, images=1) as engine:
            landed = Landed(await engine.export_rows(prompt))
            begun, go_on = threading.Event(), threading.Event()

            class Slow(Landed):
                def admit(self, blocks: Sequence[Bytes]) -> None:
                    begun.set()
                    go_on.wait(10)
                    super().admit(blocks)

            slow = Slow(await engine.export_rows(prompt))
            task = asyncio.create_task(answer(engine, prompt, slow))
            await asyncio.to_thread(begun.wait, 10)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.01)
            assert not task.done()
            assert (engine.batch, engine._images._free.qsize()) == (1, 0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine._images._free.qsize() == 1
            await until_free(engine)
            assert (await answer(engine, prompt, landed)).tokens == (await answer(engine, prompt)).tokens


def mixed_prompts(count: int, vocabulary: int) -> list[tuple[int, ...]]:
    random = np.random.default_rng(count)
    return [tuple(random.integers(40, vocabulary, size).tolist()) for size in random.integers(2, 90, count)]


async def all_at_once_as_alone(engine: LlamaCppDecode, prompts: list[tuple[int, ...]]) -> None:
    """Half of them handed over, half computed by the engine itself."""
    alone = [await answer(engine, prompt, max_tokens=8) for prompt in prompts]
    landed = [Landed(await engine.export_rows(prompt)) if n % 2 else None for n, prompt in enumerate(prompts)]
    pairs = zip(prompts, landed, strict=True)
    together = await asyncio.gather(*(answer(engine, prompt, kv, max_tokens=8) for prompt, kv in pairs))
    assert all(map(same_but_for_near_ties, together, alone))
    assert len({seen.tokens for seen in together}) > len(prompts) // 2


class TestManyAtOnce:
    async def test_64_prompts_over_8_slots_each_as_if_alone(self, tiny: ModelBundle) -> None:
        prompts = mixed_prompts(64, tiny.geometry.vocab)
        async with running(tiny) as engine:
            await all_at_once_as_alone(engine, prompts)
            assert (engine.batch, engine.waiting, engine.context_tokens) == (0, 0, 0)

    async def test_16_prompts_of_the_real_model(self, engine: LlamaCppDecode) -> None:
        await all_at_once_as_alone(engine, mixed_prompts(16, 40_000))

    async def test_what_the_router_asks(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        async with aclosing(engine.decode("r", prompt, None, GREEDY)) as stream:
            await anext(stream)
            assert engine.batch == 1
            assert engine.context_tokens == len(prompt) + 1


class TestReuse:
    async def test_a_second_turn_computes_only_what_is_new(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...]
    ) -> None:
        first = await answer(engine, prompt)
        second = (*prompt, *first.tokens, 30, 198)
        assert engine.cached_tokens(second) == len(prompt) + len(first.tokens) - 1
        resumed = await answer(engine, second)
        landed = Landed(await engine.export_rows(second))
        assert same_but_for_near_ties(resumed, await answer(engine, second, landed))

    async def test_a_request_that_was_cut_off_before_its_first_token_leaves_nothing(
        self, engine: LlamaCppDecode, chat: ChatFormat
    ) -> None:
        long = chat.encode("Nothing of this was read before the caller went away. " * 40)
        task = asyncio.create_task(answer(engine, long))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.cached_tokens(long) < 20


class TestCancellation:
    async def test_in_decode(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        async with aclosing(engine.decode("r", prompt, None, GREEDY)) as stream:
            await anext(stream)
            assert await busy_slots(engine) == 1
        assert engine.batch == 0
        await until_free(engine)
        assert engine.cached_tokens(prompt) == len(prompt) - 1

    async def test_in_its_own_prefill(self, engine: LlamaCppDecode, chat: ChatFormat) -> None:
        long = chat.encode("A long prompt that nobody waits for any more. " * 45)
        task = asyncio.create_task(answer(engine, long))
        async with asyncio.timeout(5):
            while not await busy_slots(engine):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_free(engine)
        assert (await answer(engine, (1, 2, 3), max_tokens=2)).finish == "length"


class TestSampling:
    async def test_seeds(self, engine: LlamaCppDecode, prompt: tuple[int, ...]) -> None:
        landed = Landed(await engine.export_rows(prompt))

        async def draw(seed: int) -> tuple[int, ...]:
            return (await answer(engine, prompt, landed, temperature=1.0, seed=seed, max_tokens=24)).tokens

        assert await draw(1) == await draw(1)
        assert len({await draw(seed) for seed in range(4)}) > 1

    async def test_logprobs_are_those_of_the_whole_distribution(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...]
    ) -> None:
        landed = Landed(await engine.export_rows(prompt))
        found = await engine.next_logprobs(prompt, landed)
        seen = await answer(engine, prompt, landed, max_tokens=1, logprobs=5)
        top = np.argsort(found)[::-1][:5]
        assert [token for token, _ in seen.logprobs[0].top] == top.tolist()
        assert seen.logprobs[0].logprob == pytest.approx(float(found[seen.tokens[0]]), abs=1e-4)

    async def test_an_end_of_turn_token_stops_and_counts(
        self, engine: LlamaCppDecode, chat: ChatFormat, smollm: ModelBundle
    ) -> None:
        asked = chat.encode("<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n")
        seen = await answer(engine, asked, max_tokens=200, ignore_eos=False)
        assert seen.finish == "stop"
        assert seen.tokens[-1] in smollm.end_tokens
        assert len(seen.logprobs) == len(seen.tokens)

    async def test_a_schema_binds(self, engine: LlamaCppDecode, chat: ChatFormat) -> None:
        schema = (
            '{"type":"object","properties":{"lit":{"type":"boolean"}},"required":["lit"],"additionalProperties":false}'
        )
        seen = await answer(
            engine, chat.encode("The lamp, as JSON:"), max_tokens=60, json_schema=schema, ignore_eos=False
        )
        text = b"".join(chat.token_text(token) for token in seen.tokens)
        assert set(msgspec.json.decode(text)) == {"lit"}
        assert seen.finish == "stop"

    async def test_a_bad_grammar_is_the_clients_fault(self, engine: LlamaCppDecode) -> None:
        with pytest.raises(InvalidRequest):
            await answer(engine, (1, 2), grammar="root ::= (")

    async def test_tokens_inside_a_character_are_named(self, engine: LlamaCppDecode, chat: ChatFormat) -> None:
        text = "😀日本🦖é"
        rules = Sampling(max_tokens=40, temperature=0, grammar=f'root ::= "{text}"')
        seen = [chunk async for chunk in engine.decode("r", (1, 2, 3), None, rules)]
        tokens = tuple(token for chunk in seen for token in chunk.tokens)
        body = wire.completion((1, 2, 3), rules, 0, reuse=False, stream=False)
        whole = wire.event.decode(await engine._server.client.call("POST", "/completion", body))
        assert tokens == whole.tokens
        assert max(len(chunk.tokens) for chunk in seen) > 1
        assert b"".join(chat.token_text(token) for token in tokens).decode() == text

    @pytest.mark.parametrize("max_tokens", range(2, 8))
    async def test_a_stream_cut_inside_a_character(
        self, engine: LlamaCppDecode, chat: ChatFormat, max_tokens: int
    ) -> None:
        prompt = chat.encode("日本語" * 12)
        landed = Landed(await engine.export_rows(prompt))
        whole = await answer(engine, prompt, landed, max_tokens=12, logprobs=None)
        assert "本" in b"".join(chat.token_text(token) for token in whole.tokens).decode(errors="replace")
        cut = await answer(engine, prompt, landed, max_tokens=max_tokens, logprobs=None)
        assert (cut.tokens, cut.finish) == (whole.tokens[:max_tokens], "length")

    async def test_cut_inside_a_character_of_a_grammar_the_count_is_kept(self, engine: LlamaCppDecode) -> None:
        seen = await answer(engine, (1, 2, 3), max_tokens=2, logprobs=None, grammar='root ::= "😀"')
        assert (len(seen.tokens), seen.finish) == (2, "length")


class TestLimits:
    async def test_a_prompt_beyond_the_context(self, engine: LlamaCppDecode) -> None:
        with pytest.raises(ContextExceeded, match="512 tokens"):
            await answer(engine, (5,) * 512)

    async def test_output_ends_with_the_context(self, tiny: ModelBundle) -> None:
        async with running(tiny) as engine:
            seen = await answer(engine, (5,) * 500, max_tokens=100)
        assert (len(seen.tokens), seen.finish) == (12, "length")

    @pytest.mark.parametrize(("prompt", "max_tokens"), [((), 5), ((1, 2), 0), ((1, 2), -1), ((10**9,), 5)])
    async def test_requests_that_make_no_sense(
        self, engine: LlamaCppDecode, prompt: tuple[int, ...], max_tokens: int
    ) -> None:
        with pytest.raises(InvalidRequest):
            await answer(engine, prompt, max_tokens=max_tokens)


async def test_kill_9_reaches_every_stream_and_every_waiter(tiny: ModelBundle) -> None:
    async with running(tiny, slots=2, ctx_per_request=2048) as engine:
        tasks = [asyncio.create_task(answer(engine, (7, n), max_tokens=2000)) for n in range(6)]
        while not await busy_slots(engine):
            await asyncio.sleep(0.01)
        assert engine.waiting == 4
        process = engine._server.process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [WorkerLost] * 6
        with pytest.raises(WorkerLost):
            await answer(engine, (1, 2))
        async with asyncio.timeout(5):
            while engine.batch or engine.waiting:
                await asyncio.sleep(0.01)
