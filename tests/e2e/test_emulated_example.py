"""`diptych serve` with the example that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fleet import Fleet, proven
from support.load import ask

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "trainium2-cs3.toml"


def test_the_example_as_it_is_shipped(tmp_path: Path) -> None:
    """Long prompts are read by Trainium2, and every token comes from CS-3."""
    text = EXAMPLE.read_text()
    fleet = Fleet(tmp_path, text.replace("aliases = [", 'aliases = ["any", '))
    try:
        health = fleet.health()
        assert {worker["engine"] for worker in health["workers"].values()} == {"emulated"}
        assert health["pairs"] == ["prefill-0 -> decode-0"]
        asked = [ask(fleet.url, number, 800, 200, pair=False) for number in (0, 1, 2, 0)]
        assert all(proven(fleet.record(one.request_id)) for one in asked[:3])
        texts = ["".join(one.tokens) for one in asked]
        assert len(set(texts)) == 3
        assert texts[3] == texts[0]
    finally:
        fleet.stop()
