"""A pair that hands over wrong KV is caught by the qualification, whatever is wrong with it, and is not used."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from diptych.config import FleetSettings
from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.fleet import canary_prompts
from diptych.fleet.peer import Peer
from diptych.fleet.verdict import Verdict
from diptych.gateway.main import served_model
from diptych.handoff.contract import Rope
from diptych.models.weights import DEFAULT_MODEL
from diptych.serving import find_model
from diptych.startup import qualify
from support import sabotage
from support.inprocess import PAIR, Workers, generate, service_over, settings_for
from support.sabotage import Sabotaged

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

FEW = (48, 96, 160)
ENOUGH = (40, 48, 64, 72, 80, 96, 104, 112, 128, 160)  # where one near-tie does not decide over agreement
BROKEN = {
    "no RoPE re-pairing": (None, Rope(pairing="interleaved")),
    "K and V swapped": (sabotage.swapped, None),
    "all layers shifted by one": (sabotage.next_layers, None),
    "one layer's keys shifted by a token": (sabotage.one_layer_shifted, None),
    "one token dropped": (sabotage.dropped, None),
    "one token zeroed": (sabotage.zeroed, None),
}


class Bench:
    """One decode worker and one model in PyTorch, for pairs that differ in their sabotage alone."""

    def __init__(self, settings: FleetSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.bundle = find_model(settings)
        self.chat = served_model(self.bundle, settings).chat
        self.engine = TorchPrefill(self.bundle, TorchConfig(threads=2))
        self.decode = Workers(self.bundle, settings, folder)

    async def verdict(self, engine: Sabotaged, lengths: Sequence[int] = FEW) -> Verdict:
        """Through both real workers, over canaries of these lengths, by the thresholds of every qualification."""
        prefill = Workers(self.bundle, self.settings, self.folder)
        prefill.start_prefill(engine)
        peers = [Peer(name, at, self.settings.deadlines, lambda: None) for name, at in prefill.addresses.items()]
        try:
            for peer in peers:
                await peer.ready(30)
            prompts = [canary_prompts.raw_canary(self.chat, tokens, 900 + tokens) for tokens in lengths]
            return await qualify(*peers, prompts, self.settings.deadlines, lambda: None)
        finally:
            for peer in peers:
                await peer.close()
            await prefill.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncGenerator[Bench, None]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        bench = Bench(settings_for(DEFAULT_MODEL, slots=2), Path(folder))
        try:
            await bench.decode.start_decode()
            yield bench
        finally:
            await bench.decode.close()


async def test_unbroken_passes(bench: Bench) -> None:
    verdict = await bench.verdict(Sabotaged(bench.engine), ENOUGH)
    assert verdict.passed, verdict
    assert verdict.canaries == len(ENOUGH)
    assert 0 < verdict.kl_mean < 0.015
    print(verdict)


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_is_caught(bench: Bench, what: str) -> None:
    wrong, rope = BROKEN[what]
    verdict = await bench.verdict(Sabotaged(bench.engine, wrong, rope))
    print(what, verdict)
    assert not verdict.passed, verdict
    assert verdict.canaries == len(FEW), "every canary was measured"
    assert verdict.failures


async def test_a_broken_pair_is_not_used(tiny_gguf: Path, tmp_path: Path) -> None:
    """All of start-up over it: the pair is not linked, requests go to decode alone, and the verdict is kept."""
    settings = settings_for(str(tiny_gguf), n_batch=8)
    for wrong, links in ((sabotage.zeroed, 0), (None, 0), (None, 1)):
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
            workers = Workers(find_model(settings), settings, Path(folder))
            try:
                await workers.start_decode()
                workers.start_prefill(Sabotaged(TorchPrefill(workers.bundle, TorchConfig(threads=2)), wrong))
                cache = tmp_path / ("kept" if links == 0 else "fresh")
                async with service_over(workers, cache) as service:
                    assert len(service.router.links) == links
                    prompt = canary_prompts.raw_canary(service.models()[0].chat, 900, 1)
                    output = await generate(service, prompt, 8, PAIR if links else None)
                    assert output.record.placement == ("disaggregated" if links else "aggregated")
                    assert output.record.kv_tokens == (899 if links else 0)
            finally:
                await workers.close()
