"""Shared by every room: a cache folder of the test run's own, and tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.models.resolve import ModelBundle, resolve_model
from diptych.models.tiny import ARCHITECTURES, Architecture, write_tiny_gguf

collect_ignore = ["clients"]  # in their own environment: `make test-clients`


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests write to a cache of their own; end-to-end tests use the user's, weights and qualification included."""
    if request.node.get_closest_marker("e2e") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Architecture, Path]:
    """A tiny random GGUF file of each architecture."""
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny_gguf(folder / f"tiny-{kind}.gguf", kind, seed=7) for kind in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_bundles(tiny_files: dict[Architecture, Path]) -> dict[Architecture, ModelBundle]:
    """The same files, resolved."""
    return {kind: resolve_model(str(path)) for kind, path in tiny_files.items()}
