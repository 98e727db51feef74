from __future__ import annotations

from pathlib import Path

import pytest

from diptych.bench import gateway as bench
from diptych.config import FleetSettings, ModelSettings
from support.tiny import plain_tiny


async def test_the_benchmark_counts_every_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "CELLS", {"32": (3, 400)})
    monkeypatch.setattr(bench, "SECONDS", 0.5)
    monkeypatch.setattr(bench, "FIRST_BYTE_REQUESTS", 3)
    settings = FleetSettings(model=ModelSettings(source=str(plain_tiny(tmp_path / "tiny.gguf"))))
    result = await bench.run(settings, runs=1)
    assert result["lost_tokens"] == 0
    assert set(result["event_stream"]["us_per_token"]) == {"32"}
    assert result["sse"]["us_per_token"]["32"] > 0
    assert result["achieved_tokens_per_s"] > 100
    assert result["added_first_byte_ms"] > 0
