"""Frozen settings, read from ``fleet.toml`` or taken from the defaults. Nothing here does I/O but :func:`load`.

A wrong file is refused with its line and what would be right.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from diptych.errors import ConfigError

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
WorkerId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A settings table: immutable, and a misspelt key is an error."""


class KeySettings(Frozen, frozen=True):
    """A client's key. ``models`` are the ids that it may use, all when empty; its secrets never show in a repr."""

    name: str
    api_key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    models: tuple[str, ...] = ()
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None

    def __repr__(self) -> str:
        return f"KeySettings(name={self.name!r})"


class GatewaySettings(Frozen, frozen=True):
    """Where clients connect. Port 0 takes a free one. ``region`` is the label in ARNs.

    With ``tls`` a certificate of our own is made, which clients are told to trust. Without ``keys`` only this machine
    may be served.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    max_body_mb: Count = 25
    region: str = "us-east-1"
    tls: bool = False
    keys: tuple[KeySettings, ...] = ()


class ModelSettings(Frozen, frozen=True):
    """The model served. ``source``: a known name, a GGUF file, a Hugging Face folder or a hub id.

    ``gguf`` names the decode engine's file where ``source`` is not a GGUF itself. ``aliases`` are further ids
    under which clients may ask for it, Bedrock's for instance.
    """

    source: str = "smollm2-135m"
    gguf: str | None = None
    id: str | None = None
    aliases: tuple[str, ...] = ()


class PrefillSettings(Frozen, frozen=True):
    """A worker that reads prompts. ``spin`` is GOMP_SPINCOUNT: how long idle threads spin before they sleep.

    ``keep_mb`` bounds the KV that it keeps of what it has handed over, until the first tokens are out.
    """

    id: WorkerId = "prefill-0"
    engine: Literal["torch"] = "torch"
    device: str = "cpu"
    threads: Count = 2
    chunk_tokens: Count = 256
    prefix_cache_mb: Annotated[int, Meta(ge=0)] = 128
    active_prompts: Count = 4
    spin: int = 2000
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    keep_mb: Annotated[int, Meta(ge=0)] = 128


class DecodeSettings(Frozen, frozen=True):
    """A worker that emits tokens. ``binary`` or ``address`` name a llama-server other than the built-in one.

    One that says nothing for ``token_timeout_s`` to a request that runs is hung: it is killed, and started again.
    """

    id: WorkerId = "decode-0"
    engine: Literal["llamacpp"] = "llamacpp"
    slots: Count = 8
    ctx_per_request: Count = 2560
    n_batch: Count = 128
    threads: Count = 2
    landing_mb: Count = 192
    binary: str | None = None
    address: str | None = None
    spin: int = 2000
    token_timeout_s: Positive = 30.0


class RoutingSettings(Frozen, frozen=True):
    """``transparent`` places every request where it is predicted fastest; ``opt-in`` lets only requests that ask
    for ``latency = optimized`` use the pair."""

    mode: Literal["transparent", "opt-in"] = "transparent"


class Deadlines(Frozen, frozen=True):
    """Seconds that each phase of a handoff may take before it counts as failed.

    ``resume_s`` is how long a request whose decode worker died waits for another one, ``kept_s`` how long at most a
    prefill worker keeps KV that it has handed over.
    """

    offer_s: Positive = 60.0
    prefill_s: Positive = 120.0
    heartbeat_s: Positive = 1.0
    lost_after_s: Positive = 4.0
    start_s: Positive = 120.0
    resume_s: Positive = 30.0
    kept_s: Positive = 120.0


class ContinuitySettings(Frozen, frozen=True):
    """What is done so that a stream survives its decode worker.

    The prefill worker keeps a request's KV until its first ``keep_tokens`` tokens are out (0: not at all); a seeded
    stream is replayed where at most ``replay_tokens`` of it were sent.
    """

    keep_tokens: Annotated[int, Meta(ge=0)] = 8
    replay_tokens: Annotated[int, Meta(ge=0)] = 256


class FleetSettings(Frozen, frozen=True):
    """Everything that ``fleet.toml`` can say."""

    gateway: GatewaySettings = GatewaySettings()
    model: ModelSettings = ModelSettings()
    prefill: tuple[PrefillSettings, ...] = (PrefillSettings(),)
    decode: tuple[DecodeSettings, ...] = (DecodeSettings(),)
    routing: RoutingSettings = RoutingSettings()
    deadlines: Deadlines = Deadlines()
    continuity: ContinuitySettings = ContinuitySettings()

    @property
    def workers(self) -> tuple[PrefillSettings | DecodeSettings, ...]:
        return (*self.prefill, *self.decode)

    def __post_init__(self) -> None:
        ids = [worker.id for worker in self.workers]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"worker ids must differ; {', '.join(twice)} is used twice")
        for worker in self.decode:
            if worker.n_batch < worker.slots:
                raise ValueError(
                    f"{worker.id}: n_batch = {worker.n_batch} is less than its {worker.slots} slots, of which each "
                    "needs a token of every batch"
                )
        if not self.decode:
            raise ValueError("at least one [[decode]] worker is needed")


def load(path: Path) -> FleetSettings:
    """The settings in a TOML file. Raises ConfigError with file, line and cure."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    try:
        return msgspec.convert(tomllib.loads(text), FleetSettings)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{path}:{_line_of(str(exc), text)}: {exc}") from exc


def _line_of(message: str, text: str) -> int:
    """The line that msgspec's message is about, by its path (``$.decode[0].slots``) or unknown field."""
    path = re.findall(r"[.`]([A-Za-z_]\w*)(?:\[(\d+)\])?", message.replace("`$", "`"))
    unknown = re.search(r"unknown field `(\w+)`", message)
    keys = [(name, int(index or 0)) for name, index in path if not unknown or name != unknown[1]]
    if unknown:
        keys.append((unknown[1], 0))
    line = 1
    lines = text.splitlines()
    for name, index in keys:
        line = _find(lines, line, name, index) or line
    return line


def _find(lines: list[str], start: int, name: str, index: int) -> int | None:
    """The ``index``-th line from ``start`` on that opens table ``name`` or sets key ``name``."""
    opens = re.compile(rf"^\s*(\[+\s*([\w.]+\.)?{name}\s*\]|{name}\s*=)")
    hits = [number for number, line in enumerate(lines, 1) if number >= start and opens.match(line)]
    return hits[index] if index < len(hits) else None
