"""Fleets that tests share. Whatever starts one waits until it is ready; whatever it started is gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.load import ask
from support.tiny import plain_tiny

_USERS_CACHE = os.environ.get("XDG_CACHE_HOME")  # as it is before the run gets a cache of its own


@pytest.fixture(scope="package", autouse=True)
def _users_cache() -> Iterator[None]:
    """The user's own cache, as for `make serve`: it has the default model, and its pair's qualification."""
    with pytest.MonkeyPatch.context() as patch:
        if _USERS_CACHE is None:
            patch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            patch.setenv("XDG_CACHE_HOME", _USERS_CACHE)
        yield


@pytest.fixture(scope="package")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """`diptych serve` with the default model and default settings, and an alias."""
    running = Fleet(tmp_path_factory.mktemp("fleet"), '[model]\naliases = ["any", "amazon.nova-micro-v1:0"]\n')
    yield running
    running.stop()


def tiny_settings(gguf: Path, slots: int = 2) -> str:
    """A fleet whose pair has a clear lead where it may be used: a batch of one token a slot slows decode alone down."""
    return f"""
[model]
source = "{gguf}"
aliases = ["any"]
[routing]
mode = "opt-in"
[[prefill]]
[[decode]]
slots = {slots}
n_batch = {slots}
"""


def learn(fleet: Fleet) -> None:
    """Lets the router see what decode alone takes for long prompts: at start-up it was told of short ones."""
    for number in range(4):
        ask(fleet.url, 7000 + number, 50 * (number + 1), 2, pair=False)


@pytest.fixture(scope="package")
def tiny_fleet(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Fleet]:
    """`diptych serve` with a tiny model; `service_tier: priority` goes to the pair, all else to decode alone."""
    running = Fleet(tmp_path_factory.mktemp("tiny-fleet"), tiny_settings(tiny_gguf))
    learn(running)
    yield running
    running.stop()


_LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the table at the end of the run."""
    return request.config.stash[_LINES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_LINES]:
        terminalreporter.write_line(f"  {line}")
