"""Every architecture that is served goes through the pair; any other is refused by name before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.models.tiny import ARCHITECTURES, Architecture
from e2e.conftest import learn, tiny_settings
from support.fleet import Fleet, proven, run
from support.likeness import same
from support.load import ask, reference
from support.tiny import plain_tiny

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_served(tmp_path: Path, architecture: Architecture) -> None:
    """(llama is what every other test has.)"""
    gguf = plain_tiny(tmp_path / f"{architecture}.gguf", architecture)
    fleet = Fleet(tmp_path, tiny_settings(gguf))
    try:
        learn(fleet)
        alone = [reference(fleet.url, number, 60, 48) for number in range(12)]  # more than slots: none is kept
        for number in range(4):
            asked = ask(fleet.url, number, 60, 48, pair=True)
            same(alone[number], asked.tokens)
            assert proven(fleet.record(asked.request_id))
    finally:
        assert fleet.stop() == 0


@pytest.mark.parametrize("named", ["gemma", "falco"])
def test_another_is_refused(tmp_path: Path, tiny_gguf: Path, named: str) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"llama", named.encode()))
    refused = run("serve", "--model", str(other), "--port", "0")
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert named in line
    assert "llama, qwen2" in line
