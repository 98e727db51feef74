"""Models and private directories for the llama.cpp tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llamacpp_support import private_directory

from diptych.models.resolve import ModelBundle, resolve_model
from diptych.models.tiny import ARCHITECTURES, write_tiny_gguf


@pytest.fixture(scope="session")
def smollm() -> ModelBundle:
    return resolve_model()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return resolve_model(str(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", request.param)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return resolve_model(str(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")))


@pytest.fixture
def slot_dir() -> Iterator[Path]:
    with private_directory() as directory:
        yield directory
