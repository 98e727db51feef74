"""The keys that clients may use. Pure.

An API key is kept as its SHA-256 and compared by it; a secret access key must be kept as it is, since a signature is
made with it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Iterable

import msgspec

from diptych.errors import ConfigError


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One client. ``models`` are the ids that it may use, all when empty; its secrets never show in a repr.

    The budgets of tokens are for each model; None is no limit.
    """

    name: str
    api_key_sha256: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    models: tuple[str, ...] = ()
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    reserved_input_tokens_per_minute: int | None = None
    reserved_output_tokens_per_minute: int | None = None

    def __repr__(self) -> str:
        return f"Key(name={self.name!r})"

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether the key is for a model that goes by these names."""
        return not self.models or any(name in self.models for name in names)


class Keys:
    """All keys, by what a client shows. Without any, everybody may do everything."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._by_digest: dict[str, Key] = {}
        self._by_access_key: dict[str, Key] = {}
        for key in keys:
            self._add(key)

    def __bool__(self) -> bool:
        return bool(self._by_digest or self._by_access_key)

    def _add(self, key: Key) -> None:
        if (key.access_key_id is None) != (key.secret_access_key is None):
            raise ConfigError(f"The key '{key.name}' needs both access_key_id and secret_access_key, or neither.")
        if key.access_key_id is None and key.api_key_sha256 is None:
            raise ConfigError(f"The key '{key.name}' needs api_key_sha256, or an access key.")
        if key.api_key_sha256 is not None:
            self._by_digest[key.api_key_sha256.lower()] = key
        if key.access_key_id is not None:
            self._by_access_key[key.access_key_id] = key

    def by_api_key(self, api_key: str) -> Key | None:
        """The key of an API key. A lookup by digest tells nothing about how near a guess is."""
        return self._by_digest.get(digest(api_key))

    def by_access_key(self, access_key_id: str) -> Key | None:
        return self._by_access_key.get(access_key_id)


def check_exposure(host: str, keys: Keys) -> None:
    """Raises ConfigError when an address that others can reach would be open to all."""
    if keys or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"Listening on {host} needs a key, since others can reach it. Add [[gateway.keys]] to the configuration, "
            "or listen on 127.0.0.1."
        )


def digest(api_key: str) -> str:
    """What the configuration keeps of an API key."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def new_api_key() -> str:
    """A fresh API key, to be shown once."""
    return "dip-" + secrets.token_urlsafe(32)
