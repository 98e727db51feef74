"""Which transport a pair uses, and settings that no engine could honour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych.config import load
from diptych.errors import ConfigError
from diptych.fleet.handover import transport_between
from diptych.fleet.messages import Welcome


def worker(*transports: str, host: str = "here") -> Welcome:
    nothing: Any = None
    return Welcome("w", "prefill", "1", nothing, 1, host, transports)


def test_the_sources_order_decides() -> None:
    assert transport_between(worker("tcp", "shm"), worker("shm", "tcp")) == "tcp"
    assert transport_between(worker("shm", "tcp"), worker("tcp", "shm")) == "shm"


def test_shared_memory_ends_at_the_machine() -> None:
    assert transport_between(worker("shm", "tcp"), worker("shm", "tcp", host="there")) == "tcp"
    with pytest.raises(ConfigError, match="no transport in common: one end has shm, the other none"):
        transport_between(worker("shm"), worker("shm", host="there"))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[handoff]\ntransports = ["pigeon"]', 2, "pigeon"),
        ("[handoff]\ntransports = []", 2, "length >= 1"),
        ('[[prefill]]\n[[decode]]\nslots = 2\ntransports = ["smoke"]', 4, "smoke"),
        ("[handoff]\n[handoff.fault]\nflip = 1.5", 3, "<= 1"),
        ("[handoff]\nreturn = 1", 2, "bool"),
        ('[[decode]]\nengine = "torch"\nbinary = "/bin/llama-server"', 1, "binary and address are settings of engine"),
        ('[[prefill]]\nengine = "llamacpp"\ndevice = "cuda"', 1, "device is a setting of engine"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}:{line}:")


def test_all_of_it_together(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        '[handoff]\ntransports = ["tcp", "shm"]\nreturn = true\n[handoff.fault]\nseed = 3\nflip = 0.5\n'
        '[[prefill]]\nengine = "llamacpp"\n[[decode]]\nengine = "torch"\nslots = 500\ntransports = ["tcp"]\n'
    )
    found = load(file)
    assert (found.handoff.transports, found.handoff.returns) == (("tcp", "shm"), True)
    assert found.handoff.fault is not None
    assert msgspec.to_builtins(found.handoff.fault)["flip"] == 0.5
    assert (found.prefill[0].engine, found.decode[0].engine) == ("llamacpp", "torch")
    assert found.decode[0].transports == ("tcp",)
