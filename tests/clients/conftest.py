"""The fleet of the default model that all clients go to, with keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters import ALIASES, Server

from support.fleet import Fleet

ACCESS_KEY_ID, SECRET, API_KEY = "AKIDDIPTYCHCLIENTS", "s3cr3t/of+the=clients", "dip-the-clients-key"
_SETTINGS = f"[deadlines]\nlost_after_s = 60.0\n[model]\naliases = {list(ALIASES)}\n"
_KEYS = f"""
[[gateway.keys]]
name = "signer"
access_key_id = "{ACCESS_KEY_ID}"
secret_access_key = "{SECRET}"
[[gateway.keys]]
name = "bearer"
api_key_sha256 = "{hashlib.sha256(API_KEY.encode()).hexdigest()}"
"""


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No profile, no region and no credentials of whoever runs this."""
    for name in ("AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_SESSION_TOKEN", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    empty = str(tmp_path_factory.getbasetemp() / "no-such-file")
    monkeypatch.setenv("AWS_CONFIG_FILE", empty)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", empty)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    running = Fleet(folder, _SETTINGS, gateway=_KEYS, key=API_KEY)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def server(fleet: Fleet) -> Server:
    return Server(fleet.url, ACCESS_KEY_ID, SECRET, API_KEY)
